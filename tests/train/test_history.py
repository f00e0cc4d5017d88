from __future__ import annotations

import pytest

from torchsnow.train.history import Epoch, best_epoch, epochs_done, is_finished

START = Epoch(0, None, None, 1.0, 0.8, None, None, 1.0)


def history(*val: tuple[float, float]) -> list[Epoch]:
    """Epochs with these validation accuracies and losses."""
    return [Epoch(i, 1.0, 0.5, loss, accuracy, 0.1, 1.0, 1.0) for i, (accuracy, loss) in enumerate(val, start=1)]


@pytest.mark.parametrize(("num_images", "best"), [(8, 4), (10, 3), (99, 3), (101, 2), (10_000, 2)])
def test_best_is_the_last_within_one_standard_error_of_the_highest(num_images: int, best: int) -> None:
    """Of an accuracy of 0.9 that is 0.106, 0.095, 0.0302, 0.0298 and 0.003."""
    assert best_epoch(history((0.5, 0.1), (0.9, 2.0), (0.87, 0.1), (0.8, 0.1)), num_images).epoch == best


def test_best_is_not_worse_than_the_start_in_both_accuracy_and_loss() -> None:
    assert best_epoch([START, *history((0.82, 1.0), (0.81, 1.0), (0.79, 1.0))], 10).epoch == 2
    assert best_epoch([START, *history((0.82, 1.0), (0.81, 1.0), (0.79, 0.9))], 10).epoch == 3
    assert best_epoch([START, *history((0.82, 1.0), (0.81, 1.0), (0.60, 0.9))], 10).epoch == 2
    assert best_epoch([START, *history((0.79, 1.0), (0.79, 1.1))], 10) is START


def test_a_perfect_epoch_has_no_error() -> None:
    assert best_epoch(history((1.0, 1.0), (1.0, 2.0), (0.999, 0.1)), 4).epoch == 2


def test_patience_counts_epochs_since_the_best() -> None:
    rows = history((0.5, 1.0), (0.9, 1.0), (0.8, 1.0), (0.7, 1.0))
    assert not is_finished(rows[:3], 10, patience=2)
    assert is_finished(rows, 10, patience=2)
    assert not is_finished(rows, 10, patience=None)


def test_all_epochs_are_the_end() -> None:
    assert is_finished(history((0.5, 1.0)), 1, patience=None)
    assert not is_finished([], 1, patience=1)


def test_the_start_can_be_the_best_but_is_no_epoch_of_training() -> None:
    rows = [START, *history((0.5, 1.0), (0.6, 1.0))]
    assert best_epoch(rows, 10) is START
    assert (epochs_done([START]), epochs_done(rows)) == (0, 2)
    assert is_finished(rows, 2, patience=None)
    assert not is_finished(rows, 3, patience=None)


def test_patience_does_not_compare_with_the_start() -> None:
    assert not is_finished([START], 9, patience=1)
    assert not is_finished([START, *history((0.5, 1.0), (0.6, 1.0))], 9, patience=1)
    assert is_finished([START, *history((0.6, 1.0), (0.5, 1.0))], 9, patience=1)
