"""The training loop. Between two epochs the whole state of a run is in its folder, so that it can stop anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.data import ImageSet, Splits
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.source import Source
from torchsnow.train.batches import (
    data_config,
    epoch_seed,
    num_batches,
    plain_loader,
    run_images,
    train_loader,
)
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.contract import Method
from torchsnow.train.evaluate import Metrics, evaluate
from torchsnow.train.history import Epoch, best_epoch, epochs_done, is_finished
from torchsnow.train.progress import TrainingBar
from torchsnow.train.run_folder import RunFolder
from torchsnow.train.schedule import load_optimizer_tensors, lr_factor, optimizer_tensors
from torchsnow.train.settings import TrainSettings
from torchsnow.train.step import Stepper
from torchsnow.train.store import IN_MEMORY_BYTES, MOST_VIEWS, FeatureStore, StoreWriter, View, views_of

LOOK_EVERY = 10  # steps: looking at the loss makes the CPU wait for an accelerator


@dataclass(frozen=True)
class FitResult:
    """A finished run.

    `model` is the best model as it ships, in eval mode: images -> logits. `metrics` are its validation metrics,
    `best` its epoch (0 if no training made it better than it started) and `history` all epochs, the start included.
    """

    model: nn.Module
    metrics: Metrics
    best: Epoch
    history: tuple[Epoch, ...]


def fit(
    method: Method,
    splits: Splits,
    settings: TrainSettings,
    run: RunFolder,
    *,
    resume: bool = False,
    quiet: bool = False,
    pool: ImageSet | None = None,
    chosen: Mapping[str, str] | None = None,
) -> FitResult:
    """Train on the training split, choose the best epoch on the validation split, never look at the test split.

    The model is validated before the first step too, as epoch 0, so what ships is never worse on the validation split
    than what the method started with.

    Everything is written to `run`. With `resume` a run that was stopped, in whatever way, goes on after its last
    finished epoch and ends as if it had not been; of a finished run this gives the result. On the CPU the numbers
    are the same bit by bit. torch's global generators are left as they were. A method that has a frozen part sees
    each image once, if they are not augmented. `pool` is for runs on the same data at the same size, which then decode
    each image once (see `torchsnow.train.batches.plain_images`). `chosen` says which settings were chosen for the
    caller, and why; it is written into args.yaml beside them.

    Raises TrainingError when `run` holds a run already (without `resume`) or none or another one (with it), when
    another process works in it, and when there are too few images; DivergedError when the loss is no longer a finite
    number.
    KeyboardInterrupt says how to go on.
    """
    loop = Loop(method, splits, settings, run, pool, chosen)
    with run.owned(), loop.own_randomness(), TrainingBar(settings.epochs, len(loop.images.train), quiet) as bar:
        try:
            if resume:
                loop.resume(bar)
            else:
                loop.begin(bar)
            while not is_finished(loop.history, settings.epochs, settings.patience):
                loop.run_epoch(bar)
            loop.say_why_stopped(bar)
            return loop.result()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(loop.stopped()) from None


class Loop:
    """One run: what it works with and how far it is."""

    def __init__(
        self,
        method: Method,
        splits: Splits,
        settings: TrainSettings,
        run: RunFolder,
        pool: ImageSet | None,
        chosen: Mapping[str, str] | None,
    ) -> None:
        _check_precision(method.model, settings)
        self.method, self.splits, self.settings, self.run = method, splits, settings, run
        self.device = settings.torch_device()
        self.images = run_images(splits, method.input_config, settings, pool)
        self.train_set: ImageSet | FeatureStore = self.images.train
        self.val_set: ImageSet | FeatureStore = self.images.val
        self.trained = method.model.to(self.device)
        self.stepper = Stepper(method, self.images.train, settings)
        self.steps = num_batches(len(self.images.train), settings.batch_size)
        self.chosen = dict(chosen or {})
        self.history: list[Epoch] = []
        self.selection: list[dict[str, Any]] = []
        self.prefix = ""  # of lines above the bar
        config = {"method": method.config(), "training": settings.to_dict(), "data": data_config(splits)}
        self.config: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))  # as it will be read back

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            yield

    def begin(self, bar: TrainingBar) -> None:
        """Write down what is run, let the method look at the images, and validate and save what it starts with."""
        self.write_down()
        torch.manual_seed(epoch_seed(self.settings.seed, 0))
        bar.prepare()
        self.method.start(plain_loader(self.images.plain, self.settings), self.device)
        self._store_features(bar)
        start_s = time.perf_counter()
        val = self._validate(self.trained, self.val_set)
        self.finish_start(val, time.perf_counter() - start_s, bar)

    def write_down(self) -> None:
        """Make the run folder, with what is run on which images."""
        # not in the checkpoints: a run resumes with equal settings, whoever chose them
        self.run.create({**self.config, "chosen": self.chosen} if self.chosen else self.config)
        self.splits.save(self.run.splits)
        self.run.log(f"started {self.method.name} on {self.device}, {len(self.images.train)} images to train on")

    def finish_start(self, val: Metrics, seconds: float, bar: TrainingBar) -> None:
        """Save the state before the first step, as epoch 0."""
        self._finish_epoch(Epoch(0, None, None, val.loss, val.accuracy, None, None, seconds), bar)

    def resume(self, bar: TrainingBar) -> None:
        """Go back to the last saved state; a run that was stopped before the first one begins."""
        if not self.run.last.exists():
            self.run.refuse_empty()
            self.begin(bar)
            return
        checkpoint = Checkpoint.load(self.run.last)
        checkpoint.refuse_other(self.config, self.run.path)
        self.method.load_trainable_state(checkpoint.model)
        load_optimizer_tensors(self.stepper.optimizer, checkpoint.optimizer)
        self.history, self.selection = checkpoint.history, checkpoint.selection
        self._repair(checkpoint)
        finished = is_finished(self.history, self.settings.epochs, self.settings.patience)
        if not finished:
            self._store_features(bar)
        self._say(bar, f"{'this run is finished: ' if finished else 'resumed after '}epoch {self.done}")

    @property
    def done(self) -> int:
        return epochs_done(self.history)

    def _store_features(self, bar: TrainingBar) -> None:
        """Compute a method's fixed values once for every image and view, if there is room for them."""
        settings, images = self.settings, self.images
        parts = self.method.frozen_part(settings.image_size)
        if parts is None or settings.store_bytes == 0:
            return
        frozen, trained = parts
        writer = StoreWriter(frozen, settings.batch_size, self.device, settings.num_workers)
        size_bytes = writer.size_bytes(images.plain)
        if size_bytes > settings.store_bytes:
            raise TrainingError(
                f"store_bytes is {settings.store_bytes}, and the features of one image take {size_bytes}; give more, "
                "or 0 to compute them in every epoch"
            )
        room = settings.store_bytes // size_bytes - len(images.val)
        num_views = min(MOST_VIEWS, room // len(images.train))
        seed = epoch_seed(settings.seed, 0)
        views = views_of(settings.augmentation, images.plain, images.train, num_views, seed)
        if not views or len(views) * len(images.train) > room:
            self._say(bar, f"the features take more than the {settings.store_bytes} bytes that may be stored; they are "
                      "computed in every epoch")  # fmt: skip
            return
        self.trained = trained
        train_bytes = len(views) * len(images.train) * size_bytes
        in_memory = train_bytes + len(images.val) * size_bytes <= IN_MEMORY_BYTES
        self._say(bar, f"storing the features of {len(images.train)} images in {len(views)} views, "
                  f"{train_bytes / 1e6:.0f} MB in {'memory' if in_memory else 'the run folder'}")  # fmt: skip
        bar.store()
        if in_memory:
            self.train_set = writer.in_memory(views, bar.stored)
        else:
            self.train_set = writer.in_file(views, self.run.features, self.config, bar.stored)
        self.val_set = writer.in_memory([View(images.val)], lambda done, total: None)

    def _repair(self, last: Checkpoint) -> None:
        """Do what a run that was killed right after saving `last` did not come to."""
        self.run.write_tables(self.history, self.selection)
        if best_epoch(self.history) is self.history[-1]:
            self._save_best(last.model)

    def run_epoch(self, bar: TrainingBar) -> None:
        """Train, validate and save. Raises TrainingError when the loss is not finite; nothing is saved then."""
        epoch = self.done + 1
        torch.manual_seed(epoch_seed(self.settings.seed, epoch))
        bar.start_epoch(epoch)
        start_s = time.perf_counter()
        loss, accuracy = self._train(epoch, bar)
        trained_s = time.perf_counter() - start_s
        self.method.tune(self.trained, plain_loader(self.val_set, self.settings), self.device)
        val = self._validate(self.trained, self.val_set)
        self.finish_trained((loss, accuracy), trained_s, val, time.perf_counter() - start_s, bar)

    def finish_trained(
        self, trained: tuple[float, float], trained_s: float, val: Metrics, seconds: float, bar: TrainingBar
    ) -> None:
        """Save the state after an epoch: its mean loss and accuracy in training, and what validation says."""
        epoch, (loss, accuracy) = self.done + 1, trained
        row = Epoch(
            epoch=epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            lr=self.settings.lr * self.lr_factor(epoch * self.steps - 1),
            images_per_s=len(self.images.train) / trained_s,
            seconds=seconds,
        )
        self.selection += [{"epoch": epoch, **record} for record in self.method.record()]
        self._finish_epoch(row, bar)

    def _finish_epoch(self, row: Epoch, bar: TrainingBar) -> None:
        self.history.append(row)
        self._save()
        self._say(bar, _line(row))

    def _train(self, epoch: int, bar: TrainingBar) -> tuple[float, float]:
        """One pass over the training images; mean loss and accuracy."""
        self.method.model.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, right ones, images
        first = (epoch - 1) * self.steps
        for step, (images, labels) in enumerate(train_loader(self.train_set, self.settings, epoch, self.device)):
            totals += self._step(images.to(self.device), labels.to(self.device), first + step)
            bar.advance(len(images))
            if step % LOOK_EVERY == 0 or step == self.steps - 1:
                loss, accuracy = (totals[:2] / totals[2]).tolist()
                self.require_finite(totals[0], epoch)
                bar.show(loss, accuracy)
        return loss, accuracy

    def _step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """One step of the optimiser; (sum of the loss, right ones, images)."""
        self.set_progress(step)
        return self.step_on(self.trained, images, labels, step)

    def set_progress(self, step: int) -> None:
        """Tell the method how much of the run is done before `step`, counted from 0."""
        self.method.set_progress(step / (self.steps * self.settings.epochs))

    def step_on(self, model: Callable[[Any], Tensor], images: Any, labels: Tensor, step: int) -> Tensor:
        """One step of the optimiser on whatever `model` takes; (sum of the loss, right ones, images)."""
        loss, logits = self.stepper.step(model, images, labels, self.lr_factor(step))
        right = (logits.argmax(1) == labels).sum()
        return torch.stack([loss.double() * len(labels), right.double(), right.new_tensor(len(labels))])

    def lr_factor(self, step: int) -> float:
        return lr_factor(step, self.steps * self.settings.epochs, self.steps * self.settings.warmup_epochs)

    def require_finite(self, loss: Tensor, epoch: int) -> None:
        if not bool(loss.isfinite()):
            message = (
                f"the loss is no longer a finite number in epoch {epoch}: the learning rate {self.settings.lr:g} is "
                f"probably too high; try {self.settings.lr / 10:g}, or warmup_epochs, in a new run. {self._kept()}"
            )
            self.run.log(message)
            raise DivergedError(message)

    def _validate(self, model: nn.Module, images: ImageSet | FeatureStore) -> Metrics:
        settings, classes = self.settings, self.splits.classes
        return evaluate(model, images, classes, settings.batch_size, self.device, settings.num_workers)

    def _save(self) -> None:
        """`last` first: from it everything else can be written again."""
        state = self.method.trainable_state()
        memory = optimizer_tensors(self.stepper.optimizer)
        Checkpoint(self.config, state, memory, self.history, self.selection).save(self.run.last)
        if best_epoch(self.history) is self.history[-1]:
            self._save_best(state)
        self.run.write_tables(self.history, self.selection)

    def _save_best(self, state: dict[str, Tensor]) -> None:
        Checkpoint(self.config, state, history=self.history).save(self.run.best)

    def say_why_stopped(self, bar: TrainingBar) -> None:
        """Say so if training ended before its time."""
        if self.done < self.settings.epochs:
            self._say(bar, f"stopped: the last {self.settings.patience} epochs brought nothing better on validation")

    def stopped(self) -> str:
        """Note that somebody stopped the run, and how it goes on."""
        message = f"stopped. {self._kept()} Resume the run to go on from there"
        self.run.log(message)
        return message

    def _kept(self) -> str:
        return f"{self.done} of {self.settings.epochs} epochs are safe in {self.run.path}."

    def result(self) -> FitResult:
        """The best model as it ships, and how good it is on the validation split."""
        self.method.load_trainable_state(Checkpoint.load(self.run.best).model)
        model = self.method.finish()
        self.run.write_subscription(self.method.subscription())
        best = best_epoch(self.history)
        self.run.log(f"finished after {self.done} epochs; the best is epoch {best.epoch}")
        self.run.drop_features()
        return FitResult(model, self._validate(model, self.images.val), best, tuple(self.history))

    def _say(self, bar: TrainingBar, line: str) -> None:
        self.run.log(line)
        bar.say(self.prefix + line)


def _check_precision(model: nn.Module, settings: TrainSettings) -> None:
    for module in model.modules():
        if isinstance(module, Source) and module.precision != settings.precision:
            raise TrainingError(
                f"the settings say precision {settings.precision!r} and the source was loaded in {module.precision!r}; "
                f"load it with load_source(..., precision={settings.precision!r})"
            )


def _line(row: Epoch) -> str:
    if row.epoch == 0:
        return f"before the first step: validation loss {row.val_loss:.4f}, accuracy {row.val_accuracy:.1%}"
    return (
        f"epoch {row.epoch}: loss {row.train_loss:.4f}, accuracy {row.train_accuracy:.1%}; validation loss "
        f"{row.val_loss:.4f}, accuracy {row.val_accuracy:.1%}; {row.images_per_s:.0f} images/s, {row.seconds:.1f} s"
    )
