"""The order of classes and taps is sent as a list, for a browser orders the keys of objects by itself."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch

from torchsnow.hub.live import LiveTask
from torchsnow.serving.answers import Lead, TaskAnswer
from torchsnow.serving.app import page_html
from torchsnow.serving.service import predictions
from torchsnow.source import Framing
from torchsnow.task_file.labels import probabilities


def answer(
    logits: list[float], classes: tuple[str, ...], lead: Lead | None = None, thresholds: tuple[float, ...] | None = None
) -> TaskAnswer:
    of_class = torch.tensor(logits)
    task = LiveTask("t", "0" * 64, classes, Framing(32), None, thresholds, None, 0)
    return TaskAnswer(task, of_class, probabilities(of_class, thresholds), torch.zeros(3, 32, 32), 0.5, lead)


def test_classes_are_ranked_by_their_logits() -> None:
    answered = [
        answer([0.0, 300.0, 2.0, 1.0], ("7", "10", "0", "cat")),
        answer([1.0, 1.0, 0.5, 2.0], ("b", "2", "1", "c")),
    ]
    asked = SimpleNamespace(image_names=["x", "y"], explain=False, heat=False)
    reply = json.loads(bytes(predictions(asked, [{"t": one} for one in answered], 0.1).body))
    first, second = (image["answers"][0] for image in reply["images"])
    assert first["ranking"] == ["10", "0", "cat", "7"]  # the last three have the probability 0
    assert second["ranking"] == ["c", "b", "2", "1"]
    for one in (first, second):
        assert one["label"] == one["ranking"][0]
        assert set(one["ranking"]) == set(one["probabilities"])


@pytest.mark.parametrize(
    ("logits", "thresholds", "expected"),
    [
        ([2.0, -1.0, 3.0], None, ["c"]),
        ([2.0, -1.0, 3.0], (0.5, 0.5, 0.5), ["c", "a"]),
        ([2.0, -1.0, 3.0], (0.9, 0.2, 0.99), ["b"]),
        ([-2.0, -1.0, -3.0], (0.5, 0.5, 0.5), []),
    ],
)
def test_labels_are_the_likeliest_class_or_all_that_reach_their_thresholds(
    logits: list[float], thresholds: tuple[float, ...] | None, expected: list[str]
) -> None:
    assert answer(logits, ("a", "b", "c"), None, thresholds).labels == expected


def test_taps_of_a_lead_are_ranked() -> None:
    lead = Lead("b", 3.0, {"features": 2.0, "1": 1.0, "0": 0.5}, {}, -0.5, 0.0)
    assert lead.to_dict()["ranking"] == ["features", "1", "0"]


def test_the_page_does_not_rely_on_the_order_of_keys() -> None:
    assert re.search(r"\bObject\.", page_html()) is None
    assert "ranking" in page_html()
