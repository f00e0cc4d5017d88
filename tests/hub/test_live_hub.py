from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sample_tasks import logits, sample_task
from torchsnow.errors import HubError, SourceError
from torchsnow.hub import Hub
from torchsnow.hub.cache import size_of
from torchsnow.hub.live import LiveHub
from torchsnow.source import FeatureMaps, Request, Source, load_source


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture
def hub(tmp_path: Path, source: Source) -> Hub:
    """A hub with the tasks "a", "b" and "c"."""
    hub = Hub.create(tmp_path / "hub", source)
    for seed, name in enumerate("abc"):
        hub.add(sample_task(source, name, seed=seed, num_classes=seed + 2))
    return hub


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_every_task_answers_as_it_does_alone(hub: Hub, source: Source, images: Tensor) -> None:
    answers = LiveHub(hub).predict(images)
    assert list(answers) == ["a", "b", "c"]
    for name, answer in answers.items():
        close(answer.logits, logits(source, hub.task(name), images))
        assert (answer.task.classes, answer.task.sha256) == (hub.task(name).classes, hub.infos()[name].sha256)


def test_images_go_to_their_own_tasks(hub: Hub, source: Source, images: Tensor) -> None:
    names = [["a"], ["c", "b"], [], ["a", "c"]]
    routed = LiveHub(hub).route(images, names)
    assert [sorted(own) for own in routed] == [sorted(own) for own in names]
    for row, own in enumerate(routed):
        for name, answer in own.items():
            close(answer.logits, logits(source, hub.task(name), images)[row])


def test_neighbours_in_batch_and_hub_change_nothing(hub: Hub, images: Tensor) -> None:
    live = LiveHub(hub)
    alone = live.route(images[1:2], [["b"]])[0]["b"].logits
    close(live.route(images, [["a", "c"], ["b"], ["b"], ["c"]])[1]["b"].logits, alone)
    close(live.predict(images)["b"].logits[1], alone)


def test_the_same_plan_gives_the_same_bits(hub: Hub, images: Tensor) -> None:
    live = LiveHub(hub)
    before = live.predict(images, ["a", "b"])
    hub.remove("c")
    live.poll()
    after = live.predict(images, ["a", "b"])
    assert all(torch.equal(before[name].logits, after[name].logits) for name in "ab")


def test_one_source_pass_for_all(hub: Hub, source: Source, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it takes and computes no more than is asked for."""
    requests = []
    run = Source.differentiable

    def noting(self: Source, images: Tensor, request: Request | None = None) -> FeatureMaps:
        requests.append(request)
        return run(self, images, request)

    monkeypatch.setattr(Source, "differentiable", noting)
    hub.add(sample_task(source, "small", head_taps=(), head_last=False))
    live = LiveHub(hub)
    live.route(images, [["a"], ["b"], ["a"], []])
    live.route(images, [["small"], [], [], []])
    both, small = requests
    assert both is not None
    assert small is not None
    assert (both.last, small.last, small.grids) == (True, False, {})


def test_nothing_asked_for_is_no_pass(hub: Hub, images: Tensor) -> None:
    assert LiveHub(hub).route(images, [[], [], [], []]) == [{}, {}, {}, {}]


def test_changes_are_followed(hub: Hub, source: Source, images: Tensor) -> None:
    live = LiveHub(Hub.open(hub.folder.path, source))
    assert not live.poll()
    held = live.tasks(["a"])[0]
    old = live.predict(images)["a"].logits
    new = sample_task(source, "a", seed=9)
    hub.add(new, replace=True)
    hub.remove("b")
    hub.add(sample_task(source, "d", seed=4))
    assert list(live.predict(images)) == ["a", "b", "c"]  # until it looks
    assert live.poll()
    assert list(live.predict(images)) == ["a", "c", "d"]
    close(live.predict(images)["a"].logits, logits(source, new, images))
    assert torch.equal(live.run(images, [held], [range(4)])[0].logits, old)  # whoever holds a version keeps it


def test_a_hub_from_a_copy_of_the_same_generation_is_taken_over(
    hub: Hub, source: Source, images: Tensor, tmp_path: Path
) -> None:
    copy = Hub.open(shutil.copytree(hub.folder.path, tmp_path / "copy"), source)
    hub.add(sample_task(source, "a", seed=8), replace=True)
    hub.remove("b")
    live = LiveHub(Hub.open(hub.folder.path, source))
    assert list(live.predict(images)) == ["a", "c"]
    new = sample_task(source, "a", seed=9)
    copy.add(new, replace=True)
    copy.remove("c")
    assert copy.generation == hub.generation
    shutil.copytree(copy.folder.path, hub.folder.path, dirs_exist_ok=True)
    assert live.poll()
    assert list(live.predict(images)) == ["a", "b"]
    close(live.predict(images)["a"].logits, logits(source, new, images))
    assert not live.poll()


def test_a_damaged_task_is_named_and_the_others_answer(hub: Hub, images: Tensor) -> None:
    next((hub.folder.path / "tasks" / "b").iterdir()).write_bytes(b"damaged")
    live = LiveHub(hub)
    assert list(live.predict(images)) == ["a", "c"]
    assert "'b'" in live.now.faults["b"]
    with pytest.raises(HubError, match=r"'b'.*cannot be used"):
        live.predict(images, ["a", "b"])


def test_a_file_that_is_brought_back_from_a_copy_answers_again(hub: Hub, images: Tensor) -> None:
    file = next((hub.folder.path / "tasks" / "b").iterdir())
    kept = file.read_bytes()
    file.write_bytes(b"damaged")
    live = LiveHub(hub)
    assert list(live.predict(images)) == ["a", "c"]
    assert not live.poll()
    file.write_bytes(b"still damaged")
    assert live.poll()  # there is something to look at
    assert list(live.predict(images)) == ["a", "c"]
    file.write_bytes(kept)
    assert live.poll()
    assert list(live.predict(images)) == ["a", "b", "c"]
    assert not live.poll()


def test_a_mended_task_answers_again(hub: Hub, source: Source, images: Tensor) -> None:
    next((hub.folder.path / "tasks" / "b").iterdir()).write_bytes(b"damaged")
    live = LiveHub(hub)
    live.predict(images)
    hub.add(sample_task(source, "b", seed=7), replace=True)
    live.poll()
    assert list(live.predict(images)) == ["a", "b", "c"]
    assert not live.now.faults


def test_a_version_that_is_gone_before_it_was_loaded_gives_way_to_the_next(
    hub: Hub, source: Source, images: Tensor
) -> None:
    live = LiveHub(Hub.open(hub.folder.path, source))
    new = sample_task(source, "a", seed=9)
    next((hub.folder.path / "tasks" / "a").iterdir()).unlink()
    hub.add(new, replace=True)
    close(live.predict(images, ["a"])["a"].logits, logits(source, new, images))


def test_tasks_used_last_stay(hub: Hub, images: Tensor) -> None:
    size = size_of(hub.task("c"))  # the largest of them
    live = LiveHub(hub, cache_bytes=2 * size)
    for names in (["a"], ["b"], ["a"], ["c"]):
        live.predict(images, names)
    assert live.cache.names() == ["a", "c"]
    assert list(live.predict(images)) == ["a", "b", "c"]


def test_unknown_names_and_shapes(hub: Hub, images: Tensor) -> None:
    live = LiveHub(hub)
    with pytest.raises(HubError, match="no task 'z'"):
        live.predict(images, ["z"])
    with pytest.raises(HubError, match="4 images and 1 lists"):
        live.route(images, [["a"]])
    with pytest.raises(SourceError, match="cannot take images"):
        live.predict(images[:, :2])


def test_images_that_are_none_are_refused_in_words(hub: Hub, images: Tensor) -> None:
    live = LiveHub(hub)
    for odd in (images[0], images.double(), images.to(torch.uint8), images.numpy()):
        with pytest.raises(SourceError, match=r"expected a float32 tensor \(B, 3, H, W\)"):
            live.predict(odd)  # type: ignore[arg-type]
    images[2, 0, 0, 0] = float("nan")
    with pytest.raises(SourceError, match="hold NaN"):
        live.predict(images)
    with pytest.raises(HubError, match="a list of names"):
        live.route(images, ["a", "b", "a", "b"])  # strings are sequences too


def test_answers_print_in_a_few_lines(hub: Hub, images: Tensor) -> None:
    assert len(repr(LiveHub(hub).predict(images))) < 3000


def test_predictions_while_tasks_come_and_go(hub: Hub, source: Source, images: Tensor) -> None:
    """Every answer is that of the version that it names, and no prediction fails."""
    live = LiveHub(Hub.open(hub.folder.path, source))
    versions = [sample_task(source, "b", seed=seed, num_classes=3) for seed in range(6)]
    done = threading.Event()
    answers, failures = [], []

    def ask() -> None:
        while not done.is_set():
            try:
                answers.extend(live.predict(images).values())
                answers.extend(
                    answer for own in live.route(images, [["a"], ["a", "c"], [], []]) for answer in own.values()
                )
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    expected = {hub.infos()[name].sha256: logits(source, hub.task(name), images) for name in "abc"}
    for number, version in enumerate(versions):
        hub.add(version, replace=True)
        expected[hub.infos()["b"].sha256] = logits(source, version, images)
        hub.add(sample_task(source, "d", seed=50 + number))
        expected[hub.infos()["d"].sha256] = logits(source, hub.task("d"), images)
        live.poll()
        hub.remove("d")
        live.poll()
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert answers
    for answer in answers:
        whole = answer.logits.ndim == 2
        near = expected[answer.task.sha256]
        assert any(torch.allclose(answer.logits, row, 1e-4, 1e-4) for row in ([near] if whole else near[:2]))
