"""The learning rate's range test: a few steps at rising rates, on a method that is thrown away.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3: rates are good from where the
loss begins to fall to where it becomes ragged or rises. So few steps say little, and in doubt the default stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice

import numpy as np
import torch

from torchsnow.train.batches import RunImages, epoch_seed, plain_loader, train_loader
from torchsnow.train.contract import Method
from torchsnow.train.settings import TrainSettings
from torchsnow.train.step import Stepper

STEPS = 48
LOWEST, HIGHEST = 1 / 30, 10.0  # rates of the first and the last step, as multiples of the default
LEAST, MOST = 1 / 10, 3.0  # what may be chosen
_WINDOW = 5  # steps that the loss is averaged over
_CLEAR = 8.0  # a fall of so many standard deviations of the noise is one; first steps alone make up to 5
_SAFE = 1 / 2  # of the rate where the loss falls fastest: a run stays at its rate for long
_SAFE_OF_DIVERGED = 1 / 4
_DIVERGED = 1.5  # times the loss at the start
_ALIKE = 2.0  # a factor below which a rate is not known to be better than the default


def auto_lr(make: Callable[[], Method], images: RunImages, settings: TrainSettings) -> tuple[float, str]:
    """A learning rate around the settings' own, and why, by a range test on a method that `make` gives.

    It is half the rate at which the loss falls fastest, but at most a quarter of the one at which it has risen to one
    and a half times the loss at the start, and between a tenth and three times the settings' own. That stays where the
    loss does not fall clearly, or where the two are less than a factor of 2 apart.
    """
    factor, why = choose_factor(*rising_losses(make(), images, settings))
    return float(
        f"{factor * settings.lr:.2g}"
    ) if factor != 1 else settings.lr, f"{why} in {STEPS} steps at rising rates"


def choose_factor(factors: Sequence[float], losses: Sequence[float]) -> tuple[float, str]:
    """The multiple of the default rate to train with, and why.

    `factors` are the rates of the steps as multiples of the default, `losses` what was measured before each; both are
    shorter than `STEPS` where the loss did not stay finite.
    """
    means = _means(losses)
    chosen, why = _by_descent(factors, losses, means)
    start = float(np.mean(losses[:_WINDOW])) if losses else 0.0
    risen = [factor for factor, mean in zip(factors[_WINDOW // 2 :], means, strict=False) if mean > _DIVERGED * start]
    if len(losses) < STEPS:
        risen.append(factors[len(losses) - 1] if losses else LOWEST)
    if risen and _SAFE_OF_DIVERGED * risen[0] < chosen:
        chosen, why = _SAFE_OF_DIVERGED * risen[0], "a quarter of where the loss rose"
    return min(max(chosen, LEAST), MOST), why


def _by_descent(factors: Sequence[float], losses: Sequence[float], means: np.ndarray) -> tuple[float, str]:
    if len(means) <= _WINDOW:
        return 1.0, "the method's own"
    half = _WINDOW // 2
    noise = float(np.std(np.asarray(losses[half:-half]) - means))
    if means[0] - means.min() <= _CLEAR * noise:
        return 1.0, "the method's own: the loss did not fall clearly"
    falls = means[: 1 - _WINDOW] - means[_WINDOW - 1 :]  # between two windows side by side
    chosen = _SAFE * factors[_WINDOW - 1 + int(falls.argmax())]
    if 1 / _ALIKE < chosen < _ALIKE:
        return 1.0, "the method's own, which fits how the loss fell"
    return chosen, "half of where the loss fell fastest"


def _means(losses: Sequence[float]) -> np.ndarray:
    """Averages over every whole window; the one at i is centred on step i + _WINDOW // 2."""
    if len(losses) < _WINDOW:
        return np.empty(0)
    return np.convolve(losses, np.full(_WINDOW, 1 / _WINDOW), "valid")


def rising_losses(method: Method, images: RunImages, settings: TrainSettings) -> tuple[list[float], list[float]]:
    """Start `method` and train it at rising learning rates: multiples of the settings' rate, and the losses there.

    It ends early where the loss is no longer finite. Torch's global generators are left as they were; the method is
    of no use afterwards.
    """
    device = settings.torch_device()
    order = torch.randperm(len(images.plain), generator=torch.Generator().manual_seed(settings.seed))
    drawn = order[: STEPS * settings.batch_size].tolist()
    factors: list[float] = np.geomspace(LOWEST, HIGHEST, STEPS).tolist()
    losses: list[float] = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(epoch_seed(settings.seed, 0))
        method.model.to(device)
        method.start(plain_loader(images.plain.subset(drawn), settings), device)
        stepper, train_set = Stepper(method, images.train, settings), images.train.subset(drawn)
        method.model.train()
        method.set_progress(0.0)
        batches = (batch for epoch in count(1) for batch in train_loader(train_set, settings, epoch, device))
        for factor, (batch, labels) in zip(factors, islice(batches, STEPS), strict=True):
            loss, _ = stepper.step(method.model, batch.to(device), labels.to(device), factor)
            if not bool(loss.isfinite()):
                break
            losses.append(float(loss))
    return factors[: len(losses)], losses
