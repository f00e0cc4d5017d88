"""What is said of a sequence of tasks: average accuracy, transfer and forgetting.

The matrix R of a sequence of T tasks is a list of T rows. Row i has i + 1 shares from 0 to 1: R[i][j] is the test
accuracy of task j when task i was the last one learned, j <= i. Tasks to come have no head yet, and no place in R.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float]]


def average_accuracies(matrix: Matrix) -> list[float]:
    """After every task, the mean accuracy of all tasks so far; the last is the average accuracy of the sequence."""
    return [fmean(row) for row in matrix]


def learning_accuracy(matrix: Matrix) -> float:
    """The mean accuracy of every task right after it was learned."""
    return fmean(row[-1] for row in matrix)


def backward_transfer(matrix: Matrix) -> float | None:
    """Lopez-Paz and Ranzato (2017): what later tasks changed, mean of R[T-1][j] - R[j][j] over all but the last task.

    None for a single task.
    """
    return _mean([matrix[-1][j] - matrix[j][j] for j in range(len(matrix) - 1)])


def forgetting(matrix: Matrix) -> float | None:
    """Chaudhry et al. (2018): what was lost of the best, mean of max(R[i][j], i < T-1) - R[T-1][j] over all but the
    last task; negative where tasks ended better than they ever were. None for a single task.
    """
    last = len(matrix) - 1
    return _mean([max(matrix[i][j] for i in range(j, last)) - matrix[last][j] for j in range(last)])


def forward_transfer(ahead: Sequence[float], baseline: Sequence[float]) -> float | None:
    """Lopez-Paz and Ranzato (2017): what earlier tasks did for the next, mean of ahead[j] - baseline[j] over all but
    the first task.

    `ahead[j]` is an accuracy of task j just before it is learned, `baseline[j]` the same before any task was. None
    for a single task.
    """
    return _mean([after - before for after, before in zip(ahead[1:], baseline[1:], strict=True)])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
