from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchsnow.errors import TrainingError
from torchsnow.plots import confusion_figure, draw_run, results_figure, save_png, selection_figure
from torchsnow.train import Metrics, RunFolder
from torchsnow.train.evaluate import metrics_of
from torchsnow.train.history import Epoch


def metrics(names: tuple[str, ...], num_images: int = 60) -> Metrics:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(names), (num_images,), generator=generator)
    return metrics_of(torch.randn(num_images, len(names), generator=generator), labels, names)


def history(epochs: int) -> list[Epoch]:
    return [Epoch(e, 1 / e, 0.5, 1.2 / e, 1 - 0.5 / e, 1e-3 / e, 100.0, 1.0) for e in range(1, epochs + 1)]


def selection(epochs: int, taps: int) -> list[dict[str, float | str]]:
    return [
        {"epoch": e, "tap": f"conv{t}", "channels": 16, "chosen": 4, "ever_chosen": 4 + e, "still_changing": t}
        for e in range(1, epochs + 1)
        for t in range(taps)
    ]


def result(epochs: int, names: tuple[str, ...]) -> Any:
    """As much of what training returns as is drawn."""
    return SimpleNamespace(history=history(epochs), metrics=metrics(names))


@pytest.mark.parametrize("epochs", [1, 3])
def test_run_is_drawn_into_its_folder(tmp_path: Path, epochs: int) -> None:
    run = RunFolder(tmp_path)
    run.write_tables(history(epochs), selection(epochs, 3))
    drawn = draw_run(run, result(epochs, ("a", "b", "c")))
    assert {path.name for path in drawn} == {"results.png", "confusion_matrix.png", "selection.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "selection.csv", *(p.name for p in drawn)}
    for path in drawn:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


def test_method_without_selection(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert [path.name for path in draw_run(run, result(2, ("a", "b")))] == ["results.png", "confusion_matrix.png"]


def test_with_very_many_classes_there_is_no_picture_of_the_matrix(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert [path.name for path in draw_run(run, result(2, tuple(map(str, range(10_000)))))] == ["results.png"]


def test_curves_hold_the_numbers() -> None:
    loss, accuracy, _ = results_figure(history(4)).axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert list(accuracy.lines[1].get_ydata()) == [row.val_accuracy for row in history(4)]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3, 4]


def test_the_start_has_validation_alone() -> None:
    loss, _, lr = results_figure([Epoch(0, None, None, 1.5, 0.4, None, None, 1.0), *history(2)]).axes
    np.testing.assert_equal(loss.lines[0].get_ydata(), [np.nan, 1, 0.5])
    assert list(loss.lines[1].get_ydata()) == [1.5, 1.2, 0.6]
    np.testing.assert_equal(lr.lines[0].get_ydata(), [np.nan, 1e-3, 5e-4])


def test_confusion_is_by_true_class() -> None:
    measured = metrics(("a", "b", "c"))
    figure = confusion_figure(measured)
    axes = figure.axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares.sum(1), 1)
    texts = [int(text.get_text()) for text in axes.texts]
    assert measured.confusion is not None
    assert texts == [count for row in measured.confusion for count in row]


def test_many_classes_lose_numbers_and_names() -> None:
    axes = confusion_figure(metrics(tuple(f"class {i}" for i in range(80)))).axes[0]
    assert not axes.texts
    assert "class 1" not in [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("name", ["$x", r"$\frac$", "日本", "a_b^c", "n" * 200, "%s"])
def test_any_class_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    save_png(confusion_figure(metrics((name, "other"))), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 1000


def test_selection_is_taps_by_epochs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_tables(history(2), selection(2, 3))
    ever, changing, _ = selection_figure(run).axes
    np.testing.assert_allclose(ever.images[0].get_array(), [[5 / 16, 6 / 16]] * 3)
    np.testing.assert_allclose(changing.images[0].get_array(), [[0, 0], [0.25, 0.25], [0.5, 0.5]])
    assert [label.get_text() for label in ever.get_yticklabels()] == ["conv0", "conv1", "conv2"]


@pytest.mark.parametrize("text", ["", "epoch,tap\n1,conv\n", "a\n\x00", "epoch,tap,channels,chosen\n1,conv,0,x\n"])
def test_a_damaged_table_is_one_sentence(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.selection.write_text(text)
    with pytest.raises(TrainingError, match=r"selection\.csv is damaged"):
        selection_figure(run)
    run.selection.unlink()
    with pytest.raises(TrainingError, match=r"cannot read .*selection\.csv: no such file"):
        selection_figure(run)


def test_no_global_plotting_state() -> None:
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
