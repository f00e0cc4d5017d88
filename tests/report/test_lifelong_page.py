from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torchsnow.plots import png_bytes
from torchsnow.report.lifelong import (
    findings,
    growth_rows,
    lifelong_figure,
    lifelong_page,
    metric_rows,
    task_rows,
)


def learner(matrix: list[list[float]], equal: bool) -> dict[str, Any]:
    num = len(matrix)
    means = [sum(row) / len(row) for row in matrix]
    metrics = {
        "average_accuracy": means[-1],
        "learning_accuracy": 0.9,
        "backward_transfer": -0.25 if num > 1 else None,
        "forward_transfer": 0.125 if num > 1 else None,
        "forgetting": 0.25 if num > 1 else None,
    }
    growth = {
        "stored_bytes": [2000] * num,
        "added_multiply_adds": [40] * num,
        "train_s": [3.0] * num,
        "pass_s": [0.010 + 0.002 * i for i in range(num)],
    }
    return {"matrix": matrix, "average_accuracies": means, "logits_bit_equal": equal, **metrics, **growth}


def results(snow: list[list[float]], sequential: list[list[float]], probe: list[float]) -> dict[str, Any]:
    sizes = {"train_images": 6, "val_images": 2, "test_images": 2, "classes": ["<a>", "b"], "data": "d"}
    return {
        "schema": 1,
        "made": "2030-01-01T00:00:00+00:00",
        "settings": {"source": "bundled", "epochs": 3, "image_size": 32, "seed": 0},
        "versions": {"torch": "2"},
        "machine": "one",
        "tasks": [{"name": f"0{i + 1}-d", **sizes} for i in range(len(snow))],
        "source_bytes": 5000,
        "source_multiply_adds": 1000,
        "source_probe": probe,
        "learners": {"snow": learner(snow, True), "sequential": learner(sequential, False)},
    }


TWO = results([[0.9], [0.9, 0.7]], [[0.8], [0.4, 0.75]], [0.95, 0.5])


def test_heat_maps_have_a_cell_for_every_task_so_far_and_none_for_those_to_come() -> None:
    snow, sequential, curve, *_ = lifelong_figure(TWO).axes
    for axes, matrix in ((snow, [[0.9], [0.9, 0.7]]), (sequential, [[0.8], [0.4, 0.75]])):
        (image,) = axes.get_images()
        shown = np.ma.filled(image.get_array(), np.nan)
        assert [list(row[: i + 1]) for i, row in enumerate(shown)] == matrix
        assert np.isnan(shown[0, 1])
        assert image.get_clim() == (0.4, 1)  # the same colours in both
        assert sorted(text.get_text() for text in axes.texts) == sorted(
            f"{100 * share:.0f}" for row in matrix for share in row
        )
    lines = {str(line.get_label()): list(line.get_ydata()) for line in curve.get_lines()}
    assert lines == {"SNOW, a delta per task": [0.9, 0.8], "sequential fine-tuning": [0.8, 0.575]}


def test_no_text_lies_on_another() -> None:
    figure = lifelong_figure(TWO)
    figure.canvas.draw()
    for axes in figure.axes:
        assert axes.yaxis.label.get_window_extent().x0 >= 0  # nor beyond the picture's edge
        texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        assert [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)] == []


@pytest.mark.parametrize("num", [1, 20])
def test_one_task_and_many_can_be_drawn(num: int) -> None:
    matrix = [[1.0] * (i + 1) for i in range(num)]
    content = results(matrix, matrix, [1.0] * num)
    assert png_bytes(lifelong_figure(content)).startswith(b"\x89PNG")
    assert lifelong_page(content).html()


def test_losses_are_named() -> None:
    end, learned, probe, wins, mean = findings(TWO)
    assert end.endswith("is better than SNOW in 1 task: 02-d (75.0 against 70.0).")
    assert learned.endswith("is better than SNOW in 1 task: 02-d (75.0 against 70.0).")
    assert probe.endswith("is better than SNOW in 1 task: 01-d (95.0 against 90.0).")
    assert "better than sequential fine-tuning in 1 of 2 tasks" in wins
    assert mean.endswith("averages 72.5%.")


def test_rows() -> None:
    assert metric_rows(TWO)[2] == ["backward transfer", "-25.0", "-25.0"]
    assert metric_rows(TWO)[-1][1:] == ["yes", "no"]
    assert task_rows(TWO) == [
        ["01-d", "95.0", "90.0", "90.0", "80.0", "40.0"],
        ["02-d", "50.0", "70.0", "70.0", "75.0", "75.0"],
    ]
    assert {row[0]: row[1] for row in growth_rows(TWO)} == {
        "kept per task": "2 kB",
        "multiply-adds per task, of the source's": "4%",
        "training per task, s": "3.0",
        "one image, first task alone, ms": "10.00",
        "one image, all tasks, ms": "12.00",
        "one image, each further task, ms": "2.00",
    }


def test_the_page_is_whole_and_shows_names_as_they_are() -> None:
    html = lifelong_page(TWO).html()
    assert "&lt;a&gt;, b" in html
    assert "data:image/png;base64," in html
    assert "http" not in html
