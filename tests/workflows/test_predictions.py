from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.data import LoadedData, eval_transform, load_data, read_image
from torchsnow.errors import HubError, SourceError
from torchsnow.hub import Hub
from torchsnow.source import Framing, Source, load_source
from torchsnow.workflows.predictions import predict_images


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("data") / "photos"))


@pytest.fixture
def hub(tmp_path: Path, source: Source) -> Hub:
    """A hub with the task "a" and the classes cat, dog and Überhund."""
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(sample_task(source, "a"))
    return hub


def test_predictions_are_those_of_the_hub(hub: Hub, data: LoadedData) -> None:
    files = [example.path for example in data.examples[::12]]
    bad: list[tuple[Path, str]] = []
    given = [files[0], Path("gone.png"), *files[1:]]
    predictions = list(predict_images(hub, given, None, lambda *what: bad.append(what)))
    assert [prediction.image for prediction in predictions] == [str(file) for file in files]
    for file, prediction in zip(files, predictions, strict=True):
        pixels = eval_transform(hub.source.input_config, Framing(64))(read_image(file))[None]
        expected = hub.predict(pixels)["a"][0].softmax(0)
        assert prediction.label == hub.task("a").classes[int(expected.argmax())]
        assert prediction.probabilities[prediction.label] == pytest.approx(float(expected.max()))
    assert bad == [(Path("gone.png"), "cannot read the image gone.png: there is no such file")]


def test_tasks_of_one_size_share_a_source_pass(
    hub: Hub, data: LoadedData, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(sample_task(source, "b", seed=1))
    sizes, passed = [], Source.forward

    def counted(self: Source, images: torch.Tensor, *rest: object) -> object:
        sizes.append(tuple(images.shape))
        return passed(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Source, "forward", counted)
    predictions = list(predict_images(hub, [data.examples[0].path], None, lambda *what: None))
    assert [prediction.task for prediction in predictions] == ["a", "b"]
    assert sizes == [(1, 3, 64, 64)]


def test_many_images_come_in_batches_and_in_order(
    hub: Hub, data: LoadedData, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchsnow.workflows.predictions.BATCH_SIZE", 4)
    sizes, passed = [], Source.forward

    def counted(self: Source, images: torch.Tensor, *rest: object) -> object:
        sizes.append(len(images))
        return passed(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Source, "forward", counted)
    files = [example.path for example in data.examples]
    files.insert(1, Path("gone.png"))
    done: list[tuple[int, int]] = []
    bad: list[Path] = []
    predictions = list(
        predict_images(
            hub, files, None, lambda path, why: bad.append(path), top=2, progress=lambda *at: done.append(at)
        )
    )
    assert [prediction.image for prediction in predictions] == [str(file) for file in files if file not in bad]
    assert bad == [Path("gone.png")]
    assert all(len(prediction.probabilities) == 2 for prediction in predictions)
    assert sizes == [3, *[4] * 6, 3]
    assert done[-1] == (31, 31)


def test_an_image_is_answered_alike_alone_and_among_others(hub: Hub, data: LoadedData) -> None:
    files = [example.path for example in data.examples[:5]]
    together = list(predict_images(hub, files, None, lambda *what: None))
    (alone,) = predict_images(hub, files[3:4], None, lambda *what: None)
    assert alone.probabilities == pytest.approx(together[3].probabilities, abs=1e-5)


def test_every_task_sees_pictures_as_it_was_trained_to(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.add(replace(sample_task(source, "middle", seed=0), crop_mode="center"))
    file = tmp_path / "wide.png"
    Image.effect_mandelbrot((90, 30), (-2, -1, 1, 1), 50).save(file)
    predictions = {one.task: one for one in predict_images(hub, [file], None, lambda *what: None)}
    of_whole, of_middle = predictions["a"], predictions["middle"]
    for prediction, crop_mode in ((of_whole, "squash"), (of_middle, "center")):
        pixels = eval_transform(source.input_config, Framing(64, crop_mode))(read_image(file))[None]
        expected = hub.predict(pixels, ["a"])["a"][0].softmax(0)  # both have the same numbers
        assert list(prediction.probabilities.values()) == pytest.approx(sorted(expected.tolist(), reverse=True))
    assert of_whole.probabilities != of_middle.probabilities


def test_a_hub_without_tasks_predicts_nothing(tmp_path: Path, source: Source) -> None:
    hub = Hub.create(tmp_path / "hub", source)
    with pytest.raises(HubError, match="has no tasks yet; train one first"):
        predict_images(hub, [], None, lambda *what: None)


def test_one_task_that_cannot_answer_leaves_the_others_alone(hub: Hub, data: LoadedData, source: Source) -> None:
    hub.add(sample_task(source, "b", seed=1))
    hub.add(replace(sample_task(source, "tiny", seed=2), image_size=1))
    torch.nn.init.constant_(hub.task("b").delta.head.fc.local.bias, torch.inf)  # type: ignore[union-attr, arg-type]
    bad: list[tuple[Path, str]] = []
    file = data.examples[0].path
    predictions = list(predict_images(hub, [file], None, lambda *what: bad.append(what)))
    assert {prediction.task for prediction in predictions} == {"a", "tiny"}
    assert bad == [(file, f"no answer of b for {file}: its logits are not finite numbers")]


def test_an_image_size_that_the_source_cannot_take_is_of_its_tasks_alone(
    hub: Hub, data: LoadedData, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(replace(sample_task(source, "small", seed=2), image_size=8))
    run = Source.forward

    def strict(self: Source, images: torch.Tensor, *rest: object) -> object:
        if images.shape[-1] < 32:
            raise SourceError("test_resnet cannot take such images")
        return run(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Source, "forward", strict)
    bad: list[tuple[Path, str]] = []
    file = data.examples[0].path
    predictions = list(predict_images(hub, [file], None, lambda *what: bad.append(what)))
    assert [prediction.task for prediction in predictions] == ["a"]
    assert bad == [(file, f"no answer of small for {file}: test_resnet cannot take such images")]
