"""One bad task in a hub never touches the answers of the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bad_tasks import Change, changed, smuggle, smuggle_overflow
from running_server import BEARER, Reply, Running, form, picture, running
from test_serving_predict import figure

from sample_tasks import sample_task
from torchsnow.cli.predict import _Question
from torchsnow.delta import Delta
from torchsnow.engines import DeltaRequest, Engine
from torchsnow.errors import HubError, ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving import Client
from torchsnow.task_file import encode_task

BAD: dict[str, Change] = {
    "images of 8000 pixels": lambda tensors, values: values.update(image_size=8000),
    "images of a million pixels": lambda tensors, values: values.update(image_size=10**6),
    "metrics of another shape": lambda tensors, values: values.update(metrics={"val": 3}),
    "an accuracy that is none": lambda tensors, values: values.update(metrics={"val": {"accuracy": {"a": 1}}}),
    "metrics in a list": lambda tensors, values: values.update(metrics={"val": [1], "test": "good"}),
    "numbers that are too large": lambda tensors, values: tensors["head.fc.columns"].fill_(3e38),
    "a spread of nothing": lambda tensors, values: tensors["head.spread"].zero_(),
}


def strict(reply: Reply) -> Any:
    """The JSON of a reply, as a browser reads it."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return json.loads(reply.body, parse_constant=refuse)


@contextmanager
def served(hub: Hub) -> Iterator[Running]:
    with running(LiveHub(hub), follow_s=0.05) as started:
        yield started


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_asks_for_what_cannot_be_is_left_out(hub: Hub, what: str) -> None:
    smuggle(hub, "bad", BAD[what])
    with served(Hub.open(hub.folder.path, hub.source)) as server:
        reply = server.predict([picture()])
        assert reply.status == 200, reply.body
        assert [answer["task"] for answer in strict(reply)["images"][0]["answers"]] == ["a", "b", "c"]
        listed = strict(server.call("GET", "/tasks"))
        assert [task["task"] for task in listed["tasks"]] == ["a", "b", "c"]
        assert listed["unusable"] == ["bad"]
        assert server.predict([picture()], ["bad"]).status == 409
        assert server.predict([picture()], ["a"]).status == 200


@pytest.mark.parametrize("what", [what for what in BAD if "metrics" in what or "pixels" in what])
def test_what_a_bad_file_says_of_itself_is_refused(hub: Hub, what: str) -> None:
    smuggle(hub, "bad", BAD[what])
    with pytest.raises(HubError, match=r"task 'bad' of the hub .* cannot be used"):
        hub.info("bad")
    assert [problem.task for problem in hub.verify()] == ["bad"]


@pytest.mark.parametrize("what", BAD)
def test_an_upload_that_asks_for_what_cannot_be_is_refused(guarded: Running, what: str) -> None:
    hub = guarded.service.live.hub
    content = changed(encode_task(sample_task(hub.source, "bad")), BAD[what])
    headers = {**BEARER, "content-type": "application/octet-stream"}
    reply = guarded.call("POST", "/admin/tasks", content, headers)
    assert (reply.status, strict(reply)["code"]) == (422, "bad_task_file")
    assert hub.names() == ["a", "b", "c"]


def test_logits_that_are_not_finite_are_an_error_of_that_task_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    smuggle_overflow(hub, "bad", monkeypatch)
    with served(hub) as server:
        reply = server.predict([picture(1), picture(2)])
        assert reply.status == 200
        for image in strict(reply)["images"]:
            assert [answer["task"] for answer in image["answers"]] == ["a", "b", "c"]
            (failure,) = image["errors"]
            assert (failure["task"], failure["code"]) == ("bad", "not_finite")
            assert failure["sha256"] == hub.infos()["bad"].sha256
            assert "not finite" in failure["error"]
        assert figure(server, "torchsnow_rejected_total") == 2
        alone = server.predict([picture()], ["bad"])
        assert (alone.status, strict(alone)["code"]) == (500, "not_finite")
        good = strict(server.predict([picture()], ["a"]))["images"][0]
        assert ([answer["task"] for answer in good["answers"]], good["errors"]) == (["a"], [])


def test_answers_of_the_others_can_be_explained(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    smuggle_overflow(hub, "bad", monkeypatch)
    body, kind = form([("image", picture(), "x.png"), ("explain", b"true", None)])
    with served(hub) as server:
        reply = server.call("POST", "/predict", body, {"content-type": kind})
        assert reply.status == 200, reply.body
        (image,) = strict(reply)["images"]
        assert [answer["lead"]["logits"] > 0 for answer in image["answers"]] == [True] * 3
        assert [failure["task"] for failure in image["errors"]] == ["bad"]


def test_a_model_of_the_protocol_says_that_it_has_no_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    smuggle_overflow(hub, "bad", monkeypatch)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 4 + len(picture())}}]}).encode()
    content = head + len(picture()).to_bytes(4, "little") + picture()
    with served(hub) as server:
        for name, status in (("bad", 500), ("a", 200)):
            headers = {"inference-header-content-length": str(len(head))}
            reply = server.call("POST", f"/v2/models/{name}/infer", content, headers)
            assert reply.status == status
            strict(reply)


def test_the_client_and_the_command_line_name_it(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smuggle_overflow(hub, "bad", monkeypatch)
    (tmp_path / "x.png").write_bytes(picture())
    with served(hub) as server:
        failures: list[dict[str, Any]] = []
        ((*answers,),) = Client(server.url).predict([picture()], on_bad=failures.append)
        assert [answer["task"] for answer in answers] == ["a", "b", "c"]
        assert [failure["task"] for failure in failures] == ["bad"]
        with pytest.raises(ServingError, match=r"the task 'bad' has no answer: .*not finite"):
            Client(server.url).predict([picture()])
        bad: list[tuple[Path, str]] = []
        question = _Question([tmp_path / "x.png"], None, None, lambda *what: bad.append(what), lambda done, total: None)
        found = list(question.to_server(server.url, None))
        assert [answer["task"] for answer in found] == ["a", "b", "c"]
        ((path, why),) = bad
        assert path == tmp_path / "x.png"
        assert "the task 'bad' has no answer" in why


class Picky(Engine):
    """An engine that breaks on some tasks, when they are prepared or when they are run."""

    def __init__(self, hub: Hub, prepares: bool, bad: str) -> None:
        super().__init__(hub.source)
        self._prepares, self._bad = prepares, hub.task(bad).classes
        self.num_runs = 0

    def prepare(self, delta: Delta) -> Any:
        is_bad = delta.spec.num_classes == len(self._bad)
        if is_bad and not self._prepares:
            raise KeyError("no such layer")
        return is_bad, super().prepare(delta)

    def run(self, images: Any, work: Sequence[DeltaRequest]) -> list[Any]:
        self.num_runs += 1
        if any(piece.prepared[0] for piece in work):
            raise RuntimeError("no kernel for this")
        return super().run(images, [DeltaRequest(piece.prepared[1], piece.rows) for piece in work])


def test_a_task_that_breaks_the_pass_is_found_and_the_others_answer(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(12):
        hub.add(sample_task(hub.source, f"d{seed}", seed=seed, num_classes=2))
    live = LiveHub(hub)
    live.engine = engine = Picky(hub, True, "c")
    with running(live, follow_s=0.05) as server:
        (image,) = strict(server.predict([picture()]))["images"]
        assert sorted(answer["task"] for answer in image["answers"]) == sorted(set(hub.names()) - {"c"})
        assert [(failure["task"], failure["code"]) for failure in image["errors"]] == [("c", "internal")]
        assert "kernel" not in image["errors"][0]["error"]
        assert engine.num_runs < 12  # halves of halves, not one by one
        engine.num_runs = 0
        reply = server.predict([picture(1), picture(2)])
        assert [len(image["errors"]) for image in strict(reply)["images"]] == [1, 1]
        assert engine.num_runs <= 2  # what broke a pass rests for a while
        assert server.predict([picture()], ["c"]).status == 500
    assert "no kernel for this" in caplog.text


def test_a_task_that_cannot_be_prepared_is_left_out(hub: Hub) -> None:
    live = LiveHub(hub)
    live.engine = Picky(hub, False, "c")
    with running(live, follow_s=0.05) as server:
        (image,) = strict(server.predict([picture()]))["images"]
        assert [answer["task"] for answer in image["answers"]] == ["a", "b"]
        assert strict(server.call("GET", "/tasks"))["unusable"] == ["c"]
        assert server.predict([picture()], ["c"]).status == 409


def test_a_task_of_ten_thousand_classes_is_listed_and_answers(hub: Hub) -> None:
    hub.add(sample_task(hub.source, "many", num_classes=10_000, head_divisor=64))
    with served(hub) as server:
        listed = {task["task"]: task for task in strict(server.call("GET", "/tasks"))["tasks"]}
        assert len(listed["many"]["classes"]) == 10_000
        (image,) = strict(server.predict([picture()]))["images"]
        answers = {answer["task"]: answer for answer in image["answers"]}
        assert set(answers) == {"a", "b", "c", "many"}
        assert len(answers["many"]["probabilities"]) == 10_000
        assert sum(answers["many"]["probabilities"].values()) == pytest.approx(1, abs=1e-3)
