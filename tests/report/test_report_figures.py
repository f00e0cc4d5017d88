from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic_results import METHODS, SOURCE, cell, cost, from_accuracies, results, shipped, sweep, whole_comparison

from torchsnow.methods import METHODS as KNOWN
from torchsnow.plots import png_bytes
from torchsnow.report.figures import accuracy_figure, cost_figure, curves_figure, drawings, look, sweep_figure
from torchsnow.report.results import Results
from torchsnow.report.summary import summarise
from torchsnow.train.history import Epoch

SMALL = from_accuracies({"snow": (0.8, 0.82, 0.84), "full": (0.9, 0.9, 0.93), "head": (0.7, 0.72, 0.71)})


def names(made: Results) -> list[str]:
    return [drawing.name for drawing in drawings(made)]


def legend(figure: Figure) -> list[str]:
    (made,) = figure.legends
    return [text.get_text() for text in made.get_texts()]


def test_pictures_of_a_comparison() -> None:
    assert names(whole_comparison()) == [
        f"{what}-{source}" for source in ("bundled", "resnet50") for what in ("cost", "accuracy", "curves")
    ]
    assert names(SMALL) == ["cost-bundled", "accuracy-bundled", "curves-bundled"]


def test_pictures_of_a_sweep() -> None:
    assert names(sweep()) == ["sweep-train_share-bundled"]
    assert names(sweep("width_divisor", (2, 4))) == ["sweep-width_divisor-bundled"]
    plain = results([*SMALL.cells, cell(variant={"sigma": 0.1})])
    assert names(plain) == ["cost-bundled", "accuracy-bundled", "curves-bundled", "sweep-sigma-bundled"]


def test_looks_differ_and_presets_are_kin() -> None:
    looks = [look(name) for name in KNOWN]
    assert len({made["color"] for made in looks}) == len({made["marker"] for made in looks}) == len(KNOWN)
    assert look("snow:default") == look("snow")
    assert look("snow:paper")["color"] == look("snow")["color"]
    assert look("snow:paper")["fillstyle"] != look("snow")["fillstyle"]
    assert look("of another version")["marker"] == "*"


def cost_points(**shares: float) -> list[tuple[float, float]]:
    """Where a picture shows methods that differ in the multiply-adds of a further task."""
    cells = [
        replace(one, shipped=shipped(one.method, added_multiply_adds=round(shares[one.method] * SOURCE)))
        for one in SMALL.cells
    ]
    (axes,) = cost_figure("bundled", summarise(results(cells))).axes
    low, high = axes.get_xlim()
    assert low < 2e-4 < 1 < high
    return [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() in "osv"]


def test_cost_is_where_it_belongs() -> None:
    points = cost_points(snow=0.034, full=1.0, head=1e-6)
    assert [point[0] for point in points] == pytest.approx([0.034, 1.0, 2e-4])
    assert [point[1] for point in points] == pytest.approx([0.82, 0.91, 0.71])


def test_methods_of_one_cost_are_set_apart() -> None:
    (snow, _), (full, _), (head, _) = cost_points(snow=1.0, full=1.0, head=0.5)
    assert snow < 1 < full
    assert head == pytest.approx(0.5)


def test_the_body_has_a_curve_of_its_own() -> None:
    start, *trained = [Epoch(e, 1.0, 0.5, 1.0, 0.9, 0.1, 1.0, 1.0, body) for e, body in enumerate((None, 0.3, 0.6))]
    cells = [cell(history=(start, *trained)), cell(seed=1, history=(start, replace(trained[0], body_val_accuracy=0.5)))]
    whole, body = curves_figure("bundled", summarise(results(cells))).axes[0].lines
    assert list(whole.get_ydata()) == pytest.approx([0.9, 0.9])
    assert (list(body.get_xdata()), list(body.get_ydata())) == ([1], [pytest.approx(0.4)])


def test_accuracies_have_their_intervals_and_seeds() -> None:
    (axes,) = accuracy_figure("bundled", summarise(SMALL)).axes
    (snow,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert list(snow.get_xdata()) == pytest.approx([0.82])
    seeds = next(line for line in axes.lines if line.get_marker() == ".")
    assert list(seeds.get_xdata()) == pytest.approx([0.8, 0.82, 0.84])
    ((low, _), (high, _)) = axes.collections[0].get_segments()[0]
    assert (low, high) == pytest.approx(summarise(SMALL)[0].accuracy.interval)


def test_curves_are_means_of_what_all_seeds_have() -> None:
    history = [Epoch(e, 1.0, 0.5, 1.0, accuracy, 0.1, 1.0, 1.0) for e, accuracy in enumerate((0.2, 0.4, 0.9))]
    cells = [
        cell(seed=0, history=tuple(history)),
        cell(seed=1, history=(history[0], replace(history[1], val_accuracy=0.5))),
    ]
    (axes,) = curves_figure("bundled", summarise(results(cells))).axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.2, 0.45])
    assert list(axes.lines[0].get_xdata()) == [0, 1]


def test_sweep_is_sorted_by_value() -> None:
    made = sweep("train_share", (1.0, 0.3, 0.1))
    figure = sweep_figure("bundled", "train_share", summarise(made))
    assert legend(figure) == ["snow", "random", "full"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "0.3", "1"]
        snow = next(line for line in axes.lines if line.get_marker() == "o")
        assert list(snow.get_xdata()) == sorted(snow.get_xdata())
    first = [row.accuracy.mean for row in summarise(made) if row.method == "snow" and row.data == "elpv:binary"]
    snow = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert list(snow.get_ydata()) == pytest.approx(first[::-1])


def test_methods_without_the_setting_are_levels() -> None:
    figure = sweep_figure("bundled", "width_divisor", summarise(sweep("width_divisor", (2, 4))))
    level = next(line for line in figure.axes[0].lines if line.get_linestyle() == ":")
    assert len(set(level.get_ydata())) == 1
    assert "full" in legend(figure)


def test_two_swept_settings_are_lines_of_their_own() -> None:
    cells = [cell(variant={"sigma": s, "train_share": t}) for s in (0.0, 0.1) for t in (0.1, 1.0)]
    figure = sweep_figure("bundled", "sigma", summarise(results(cells)))
    assert legend(figure) == ["snow, train_share=0.1", "snow, train_share=1"]
    assert names(results(cells)) == ["sweep-sigma-bundled", "sweep-train_share-bundled"]


def test_words_and_numbers_can_both_be_swept() -> None:
    cells = [cell(variant={"slots": slots}) for slots in ("rank", None, True, 3)]
    (axes,) = sweep_figure("bundled", "slots", summarise(results(cells))).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["True", "3", "rank", "None"]


@pytest.mark.parametrize("name", ["$x", r"$\frac$", "日本", "photos/" * 20 + "end"])
def test_any_name_can_be_drawn(name: str) -> None:
    cells = [cell(data=name, source=name), cell(data=name, source=name, variant={name: name})]
    for drawing in drawings(results(cells, costs=(cost("snow", name),))):
        assert png_bytes(drawing.draw()).startswith(b"\x89PNG")


def test_no_texts_overlap() -> None:
    for drawing in drawings(whole_comparison(("bundled",))):
        figure = drawing.draw()
        figure.draw_without_rendering()
        boxes = [text.get_window_extent().shrunk(0.9, 0.9) for text in drawn_texts(figure)]
        assert len(boxes) > len(METHODS)
        assert not [box for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)], drawing.name


def drawn_texts(figure: Figure) -> list[Text]:
    """Titles, names of axes, legends, and the labels of those ticks that lie within their axis."""
    texts = [text for legend in figure.legends for text in legend.get_texts()] + figure.texts
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in texts if text.get_text()]
