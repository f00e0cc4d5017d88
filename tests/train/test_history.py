from __future__ import annotations

from torchsnow.train.history import Epoch, best_epoch, epochs_done, is_finished

START = Epoch(0, None, None, 1.0, 0.8, None, None, 1.0)


def history(*val: tuple[float, float]) -> list[Epoch]:
    """Epochs with these validation accuracies and losses."""
    return [Epoch(i, 1.0, 0.5, loss, accuracy, 0.1, 1.0, 1.0) for i, (accuracy, loss) in enumerate(val, start=1)]


def test_best_is_by_accuracy_then_loss_then_first() -> None:
    assert best_epoch(history((0.5, 0.1), (0.9, 2.0), (0.8, 0.1))).epoch == 2
    assert best_epoch(history((0.9, 0.5), (0.9, 0.4), (0.9, 0.4))).epoch == 2


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
    assert best_epoch(rows) is START
    assert (epochs_done([START]), epochs_done(rows)) == (0, 2)
    assert is_finished(rows, 2, patience=None)
    assert not is_finished(rows, 3, patience=None)


def test_patience_does_not_compare_with_the_start() -> None:
    assert not is_finished([START], 9, patience=1)
    assert not is_finished([START, *history((0.5, 1.0), (0.6, 1.0))], 9, patience=1)
    assert is_finished([START, *history((0.6, 1.0), (0.5, 1.0))], 9, patience=1)
