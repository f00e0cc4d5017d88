"""What an answer rests on: parts that add up, and are those of the version that answered."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running_server import Reply, Running, form, picture

from sample_tasks import logits, sample_task
from torchsnow.data import eval_transform, read_image
from torchsnow.delta.head import LAST, Head
from torchsnow.explain.attribution import attribute
from torchsnow.heat import drawn
from torchsnow.hub import Hub
from torchsnow.serving.answers import Explainer, TaskAnswer
from torchsnow.source import Source
from torchsnow.task_file import Task


def explained(server: Running, images: list[bytes], *tasks: str) -> list[list[dict[str, Any]]]:
    parts = [("image", image, "x.png") for image in images] + [("task", name.encode(), None) for name in tasks]
    body, kind = form([*parts, ("explain", b"true", None)])
    reply = server.call("POST", "/predict", body, {"content-type": kind})
    assert reply.status == 200, reply.body
    return [image["answers"] for image in reply.json["images"]]


def pixels(source: Source, task: Task, image: bytes) -> torch.Tensor:
    return eval_transform(source.input_config, task.framing)(read_image(io.BytesIO(image)))[None]


def above(of_classes: torch.Tensor, by: torch.Tensor) -> float:
    first, second = by.argsort(descending=True)[:2].tolist()
    return float(of_classes[first] - of_classes[second])


def test_the_parts_are_those_of_the_head_and_add_up(steady: Running, source: Source) -> None:
    images = [picture(1), picture(2)]
    for image, answers in zip(images, explained(steady, images), strict=True):
        assert [answer["task"] for answer in answers] == ["a", "b", "c"]
        for answer in answers:
            task, lead = steady.service.live.hub.task(answer["task"]), answer["lead"]
            x = pixels(source, task, image)
            expected = logits(source, task, x)[0]
            assert lead["over"] == list(answer["probabilities"])[1]
            assert lead["logits"] == pytest.approx(above(expected, expected), abs=1e-3)
            parts = [*lead["taps"].values(), lead["own"], lead["bias"]]
            assert sum(parts) == pytest.approx(lead["logits"], abs=0.01)
            assert list(lead["depths"]) == ["early", "middle", "late"]
            assert sum(lead["depths"].values()) == pytest.approx(sum(lead["taps"].values()), abs=0.01)
            first = [lead["taps"].get(name, 0) for name in list(source.taps)[: -(-len(source.taps) // 3)]]
            assert lead["depths"]["early"] == pytest.approx(sum(first), abs=0.01)
            assert list(lead["taps"].values()) == sorted(lead["taps"].values(), reverse=True)
            own = copy.deepcopy(task)  # without what it reads of the source, a head says what its own layers say
            torch.nn.init.zeros_(own.delta.head.fc.columns)  # type: ignore[union-attr, arg-type]
            torch.nn.init.zeros_(own.delta.head.fc.local.bias)  # type: ignore[union-attr, arg-type]
            assert lead["own"] == pytest.approx(above(logits(source, own, x)[0], expected), abs=0.01)


def test_a_tap_has_the_part_that_goes_when_it_is_not_read(steady: Running, source: Source) -> None:
    (answers,) = explained(steady, [picture(1)], "b")
    task, (answer,) = steady.service.live.hub.task("b"), answers
    x = pixels(source, task, picture(1))
    before, found = logits(source, task, x)[0], attribute(source, task.delta, x).head.parts
    assert set(answer["lead"]["taps"]) == set(found) == {*source.taps, LAST}
    head, first = task.delta.head, 0
    assert isinstance(head, Head)
    index = head.pool.index
    for name in source.taps:
        without = copy.deepcopy(task)
        num_chs = source.taps[name].num_chs
        with torch.no_grad():
            without.delta.head.fc.columns[:, (index >= first) & (index < first + num_chs)] = 0  # type: ignore[union-attr]
        first += num_chs
        lost = above(before - logits(source, without, x)[0], before)
        assert answer["lead"]["taps"][name] == pytest.approx(lost, abs=1e-3)


def test_a_task_with_a_grid_is_explained_by_its_head_and_its_own_layers(
    server: Running, hub: Hub, source: Source
) -> None:
    task = sample_task(source, "grid", width_divisor=None, grid_width=16, head_std=True, head_divisor=4)
    hub.add(task)
    server.wait_until(lambda: server.predict([picture(1)], ["grid"]).status == 200)
    ((answer,),) = explained(server, [picture(1)], "grid")
    lead, x = answer["lead"], pixels(source, task, picture(1))
    expected = logits(source, task, x)[0]
    first, second = expected.argsort(descending=True)[:2]
    own = copy.deepcopy(task)
    torch.nn.init.zeros_(own.delta.head.fc.columns)  # type: ignore[union-attr, arg-type]
    torch.nn.init.zeros_(own.delta.head.fc.local.bias)  # type: ignore[union-attr, arg-type]
    of_body = logits(source, own, x)[0]
    assert lead["own"] == pytest.approx(float(of_body[first] - of_body[second]), abs=0.01)
    assert abs(lead["own"]) > 0.01
    assert set(lead["taps"]) == set(attribute(source, task.delta, x).head.parts)
    assert sum([*lead["taps"].values(), lead["own"], lead["bias"]]) == pytest.approx(lead["logits"], abs=0.01)


def test_nothing_is_explained_unless_asked(steady: Running) -> None:
    plain = steady.predict([picture()], ["a"]).json["images"][0]["answers"][0]
    assert "lead" not in plain
    body = {"images": [base64.b64encode(picture()).decode()], "tasks": ["a"], "explain": True}
    reply = steady.call("POST", "/predict", json.dumps(body), {"content-type": "application/json"})
    assert reply.json["images"][0]["answers"][0]["lead"]["logits"] > 0
    for odd in ("yes", 1, None):
        body["explain"] = odd  # type: ignore[assignment]
        assert steady.call("POST", "/predict", json.dumps(body), {"content-type": "application/json"}).status == 400
    content, kind = form([("image", picture(), "x"), ("explain", b"yes", None)])
    assert steady.call("POST", "/predict", content, {"content-type": kind}).status == 400


def test_heads_that_read_nothing_of_the_source_and_other_sizes(server: Running, hub: Hub) -> None:
    hub.add(sample_task(hub.source, "d", seed=5, head_taps=(), head_last=False))
    server.wait_until(lambda: len(server.call("GET", "/tasks").json["tasks"]) == 4)
    (answers,) = explained(server, [picture(1)])
    lead = answers[3]["lead"]
    assert lead["taps"] == {}
    assert lead["own"] + lead["bias"] == pytest.approx(lead["logits"], abs=1e-3)
    assert all(answer["lead"]["taps"] for answer in answers[:3])


def test_a_version_that_was_replaced_is_not_explained_by_its_successor(server: Running, hub: Hub) -> None:
    explainer, (task,) = Explainer(server.service.live), server.service.live.tasks(["a"])
    assert list(explainer.heads([task], float("inf"))) == [task.sha256]
    hub.add(sample_task(hub.source, "a", seed=9), replace=True)
    server.service.live.poll()
    assert explainer.heads([task], float("inf")) == {}


GRID = {"width_divisor": None, "grid_width": 16, "grid_reduction": 16, "head_divisor": 4}


@pytest.fixture
def with_grid(server: Running, hub: Hub) -> Running:
    """A server with a task that reads a grid, besides those that read none."""
    hub.add(sample_task(hub.source, "grid", **GRID))
    server.wait_until(lambda: server.predict([picture(1)], ["grid"]).status == 200)
    return server


def with_heat(server: Running, images: list[bytes], *tasks: str, **headers: str) -> Reply:
    parts = [("image", image, "x.png") for image in images] + [("task", name.encode(), None) for name in tasks]
    body, kind = form([*parts, ("heat", b"true", None)])
    return server.call("POST", "/predict", body, {"content-type": kind, **headers})


def test_a_heat_map_is_that_of_the_answer(with_grid: Running, source: Source) -> None:
    reply = with_heat(with_grid, [picture(1)], "grid", "a")
    narrow, answer = reply.json["images"][0]["answers"]
    assert (narrow["task"], narrow["heat"]) == ("a", None)  # a narrow copy reads no grid
    assert "lead" not in answer
    scheme, _, content = answer["heat"].partition(";base64,")
    assert scheme == "data:image/jpeg"
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    task = with_grid.service.live.hub.task("grid")
    expected = drawn(source, task, read_image(io.BytesIO(picture(1))), answer["label"])
    assert shown.size == expected.size
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected)).mean() < 6
    body = {"images": [base64.b64encode(picture(1)).decode()], "tasks": ["grid"], "explain": True, "heat": True}
    both = with_grid.call("POST", "/predict", json.dumps(body), {"content-type": "application/json"})
    (again,) = both.json["images"][0]["answers"]
    assert (again["heat"], again["lead"]["over"]) == (answer["heat"], answer["ranking"][1])
    raw = with_grid.call("POST", "/predict?task=grid&heat=true", picture(1), {"content-type": "image/png"})
    assert raw.json["images"][0]["answers"][0]["heat"] == answer["heat"]


def test_more_heat_maps_than_a_request_may_have_are_refused_before_they_are_computed(with_grid: Running) -> None:
    four = [picture(number) for number in range(4)]
    before = with_grid.service.metrics.text()
    reply = with_heat(with_grid, [*four, picture(5)])  # of four tasks
    assert (reply.status, reply.json["code"]) == (413, "too_many_heat_maps")
    assert "heat maps of 16 answers" in reply.json["error"]
    assert images_answered(with_grid.service.metrics.text()) == images_answered(before)
    assert with_heat(with_grid, four).status == 200


def images_answered(metrics: str) -> list[str]:
    return [line for line in metrics.splitlines() if line.startswith("torchsnow_batch")]


def test_others_are_answered_between_two_heat_maps(with_grid: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    heat, begun = Explainer.heat, threading.Event()

    def slow(*given: Any) -> Any:
        begun.set()
        time.sleep(0.15)
        return heat(*given)

    monkeypatch.setattr(Explainer, "heat", slow)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(with_heat, with_grid, [picture(number) for number in range(16)], "grid")
        assert begun.wait(10)
        assert with_grid.predict([picture(1)], ["a"]).status == 200
        assert not long.done()  # it takes 2.4 s in all
        assert long.result().status == 200
    late = with_heat(with_grid, [picture(number) for number in range(16)], "grid", **{"x-deadline-s": "0.5"})
    assert (late.status, late.json["code"]) == (429, "deadline")


def test_a_version_that_was_replaced_or_is_not_finite_has_no_heat_map(with_grid: Running, hub: Hub) -> None:
    explainer, (task,) = Explainer(with_grid.service.live), with_grid.service.live.tasks(["grid"])
    delta = explainer.delta(task)
    assert delta is not None
    answer = TaskAnswer(task, torch.zeros(3), torch.zeros(3), torch.ones(3, 64, 64), None)
    assert explainer.heat(delta, answer) is not None
    assert isinstance(delta.head, Head)
    torch.nn.init.constant_(delta.head.fc.local.weight, float("inf"))  # type: ignore[arg-type, union-attr]
    assert explainer.heat(delta, answer) is None
    hub.add(sample_task(hub.source, "grid", seed=9, **GRID), replace=True)
    with_grid.service.live.poll()
    assert explainer.delta(task) is None
