from __future__ import annotations

from typing import Any

import pytest

from torchsnow.experiments.bench import bench_figure
from torchsnow.plots import png_bytes

SPEEDS = {"separate": {1: 20.0, 10: 2.0}, "heads": {1: 20.0, 10: 19.0}, "snow": {1: 15.0, 10: 11.0}}
INFERENCE: list[dict[str, Any]] = [
    {"kind": kind, "tasks": tasks, "images_per_s": speed, "limit": {1: 0.97, 10: 7.5}[tasks]}
    for kind, speeds in SPEEDS.items()
    for tasks, speed in speeds.items()
]
TRAINING: list[dict[str, Any]] = [
    {"method": "full", "images_per_s": 5.0, "speedup": 1.0},
    {"method": "snow:paper", "images_per_s": 15.0, "speedup": 3.0},
]


def test_lines_of_the_measured_and_a_dashed_one_of_the_limit() -> None:
    (axes,) = bench_figure([], INFERENCE).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    for name, kind in {"separate networks": "separate", "heads on one source": "heads", "SNOW": "snow"}.items():
        assert dict(zip(*lines[name].get_data(), strict=True)) == SPEEDS[kind]
        assert lines[name].get_linestyle() == "-"
    bound = lines["SNOW, if only multiply-adds took time"]
    assert list(bound.get_ydata()) == pytest.approx([20 * 0.97, 2 * 7.5])
    assert bound.get_linestyle() == "--"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "10"]


def test_bars_of_training_in_the_order_of_the_rows() -> None:
    (axes,) = bench_figure(TRAINING, []).axes
    assert [bar.get_width() for bar in axes.patches] == [5, 15]
    assert [text.get_text() for text in axes.texts] == ["5 (1.00 x)", "15 (3.00 x)"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["full", "snow:paper"]


def test_without_full_fine_tuning_there_is_no_ratio() -> None:
    (axes,) = bench_figure([{**TRAINING[1], "speedup": None}], []).axes
    assert [text.get_text() for text in axes.texts] == ["15"]


def test_all_parts_and_none_can_be_drawn() -> None:
    assert len(bench_figure(TRAINING, INFERENCE).axes) == 2
    assert png_bytes(bench_figure([], [])).startswith(b"\x89PNG")


def test_no_text_lies_on_another() -> None:
    figure = bench_figure(TRAINING, INFERENCE)
    figure.canvas.draw()
    for axes in figure.axes:
        texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        clashes = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]
        assert clashes == []
