from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsnow.experiments.lifelong_metrics import (
    average_accuracies,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)

R = [[0.9], [0.6, 0.8], [0.7, 0.7, 1.0]]
SHARES = st.floats(0, 1)
SEQUENCES = st.integers(2, 6).flatmap(
    lambda num: st.tuples(*[st.lists(SHARES, min_size=i + 1, max_size=i + 1) for i in range(num)])
)


def reference(matrix: list[list[float]]) -> tuple[float, float, float]:
    """Average accuracy, backward transfer and forgetting, term by term, from the papers' formulae with T, i, j >= 1."""
    num = len(matrix)
    full = np.full((num + 1, num + 1), np.nan)
    for i, row in enumerate(matrix, start=1):
        full[i, 1 : i + 1] = row
    last, before = full[num, 1:num], [full[j, j] for j in range(1, num)]
    best = [np.nanmax(full[1:num, j]) for j in range(1, num)]
    return float(full[num, 1:].mean()), float((last - before).mean()), float((best - last).mean())


def test_a_sequence_worked_out_by_hand() -> None:
    assert average_accuracies(R) == pytest.approx([0.9, 0.7, 0.8])
    assert learning_accuracy(R) == pytest.approx(0.9)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.7 - 0.8)) / 2)
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.7)) / 2)
    assert forward_transfer([0.5, 0.6, 0.8], [0.5, 0.7, 0.6]) == pytest.approx((-0.1 + 0.2) / 2)


def test_forgetting_counts_from_the_best_and_not_from_the_first() -> None:
    matrix = [[0.5], [0.9, 0.8], [0.7, 0.8, 0.8]]
    assert forgetting(matrix) == pytest.approx(((0.9 - 0.7) + 0) / 2)
    assert backward_transfer(matrix) == pytest.approx((0.7 - 0.5) / 2)


def test_one_task_has_nothing_before_or_after_it() -> None:
    assert (backward_transfer([[0.9]]), forgetting([[0.9]]), forward_transfer([0.5], [0.4])) == (None, None, None)


@given(SEQUENCES)
def test_as_an_independent_reference(rows: tuple[list[float], ...]) -> None:
    matrix = list(rows)
    expected = reference(matrix)
    assert (average_accuracies(matrix)[-1], backward_transfer(matrix), forgetting(matrix)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def avalanche() -> Any:
    """Avalanche's metrics, where it is installed."""
    return pytest.importorskip("avalanche.evaluation.metrics", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore")  # Avalanche's own
@given(SEQUENCES, st.data())
def test_as_avalanche(avalanche: Any, rows: tuple[list[float], ...], data: st.DataObject) -> None:
    """Avalanche's forgetting counts from when a task was learned: it is what backward transfer is called here, with
    the other sign; the best is the first as soon as nothing gets better later."""
    matrix = list(rows)
    falling = [[min(share, matrix[j][j]) for j, share in enumerate(row)] for row in matrix]
    for some in (matrix, falling):
        lost, gained = avalanche.Forgetting(), avalanche.BWT()
        for metric in (lost, gained):
            for i, row in enumerate(some):  # as its plugins do: first of the task just learned, last of older ones
                metric.update(i, row[i], initial=True)
                for j in range(i):
                    metric.update(j, row[j])
        assert backward_transfer(some) == pytest.approx(np.mean(list(gained.result().values())))
        if some is falling:
            assert forgetting(some) == pytest.approx(np.mean(list(lost.result().values())))
    pairs = data.draw(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=6))
    ahead, baseline = zip(*pairs, strict=True)
    forward = avalanche.ForwardTransfer()
    for j, share in enumerate(baseline):
        forward.update(j, share, initial=True)
    for j, share in enumerate(ahead[1:], start=1):
        forward.update(j, share)
    assert forward_transfer(ahead, baseline) == pytest.approx(np.mean(list(forward.result().values())))
