"""One training run: what it works with, how far it is, and its epochs.

Between two epochs the whole state of a run is in its folder, so that it can stop anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from torchsnow.data import ImageSet, Splits
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.source import Source
from torchsnow.train.batches import data_config, epoch_seed, num_batches, plain_loader, run_images, train_loader
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.contract import Method
from torchsnow.train.evaluate import Metrics, compute_metrics, evaluate, predict
from torchsnow.train.history import Epoch, best_epoch, epochs_done, is_finished
from torchsnow.train.progress import TrainingBar
from torchsnow.train.ranks import here
from torchsnow.train.run_folder import RunFolder
from torchsnow.train.schedule import load_optimizer_tensors, lr_factor, optimizer_tensors
from torchsnow.train.settings import TrainSettings
from torchsnow.train.step import Stepper
from torchsnow.train.store import MOST_VIEWS, FeatureStore, Wanted, sample_of
from torchsnow.train.targets import are_right

CHECK_EVERY = 10  # steps: looking at the loss makes the CPU wait for an accelerator
_NORM_BATCHES = 32  # of training images, which tell the statistics of a norm well enough


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


@dataclass(frozen=True)
class TaskRun:
    """One task to be trained; see `torchsnow.train.fit`. Lines of a task with a name begin with it.

    `on_start` is given the model as it starts, once it is validated. From `deadline_s` on, by the monotonic clock, no
    epoch shall continue.
    """

    method: Method
    splits: Splits
    settings: TrainSettings
    run: RunFolder
    pool: ImageSet | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    on_start: Callable[[FitResult], None] | None = None
    deadline_s: float | None = None


class Loop:
    """One run: what it works with and how far it is."""

    def __init__(self, task: TaskRun) -> None:
        method, splits, settings = task.method, task.splits, task.settings
        _validate_precision(method.model, settings)
        self.method, self.splits, self.settings, self.run = method, splits, settings, task.run
        self.device = settings.torch_device()
        self.images = run_images(splits, method.input_config, settings, task.pool)
        self.train_set: ImageSet | FeatureStore = self.images.train
        self.val_set: ImageSet | FeatureStore = self.images.val
        self.trained = method.model.to(self.device)
        self.ranks = here()
        self.ranks.validate_sizes(settings.batch_size, len(self.images.train))
        self.stepper = Stepper(method, self.images.train, settings, self.ranks)
        self.steps = num_batches(len(self.images.train), settings.batch_size, self.ranks.least_batch)
        self.chosen = dict(task.chosen)
        self.on_start, self.deadline_s = task.on_start, task.deadline_s
        self.epochs = settings.epochs
        self.history: list[Epoch] = []
        self.selection: list[dict[str, Any]] = []
        self.prefix = f"{task.name}: " if task.name else ""
        config = {"method": method.config(), "training": settings.to_dict(), "data": data_config(splits)}
        self.config: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))  # as it will be read back

    def write_down(self) -> None:
        """Make the run folder, with what is run on which images."""
        # not in the checkpoints: a run resumes with equal settings, whoever chose them
        self.run.create({**self.config, "chosen": self.chosen} if self.chosen else self.config)
        self.splits.save(self.run.splits)
        self.run.log(f"started {self.method.name} on {self.device}, {len(self.images.train)} images to train on")

    def restore(self, bar: TrainingBar) -> None:
        """Go back to the last saved state."""
        self._repair(self._load())
        self._say(bar, f"{'this run is finished: ' if self.is_finished else 'resumed after '}epoch {self.done}")

    def _load(self) -> Checkpoint:
        checkpoint = Checkpoint.load(self.run.last)
        checkpoint.validate_same_config(self.config, self.run.path)
        self.method.load_trainable_state(checkpoint.model)
        load_optimizer_tensors(self.stepper.optimizer, checkpoint.optimizer)
        self.history, self.selection = checkpoint.history, checkpoint.selection
        return checkpoint

    @property
    def done(self) -> int:
        return epochs_done(self.history)

    @property
    def is_finished(self) -> bool:
        return is_finished(self.history, self.epochs, self.settings.patience)

    def plan_store(self, bar: TrainingBar) -> tuple[Wanted, Wanted] | None:
        """What is to be stored of the training and of the validation images: a method's fixed values, once for every
        image and view. None if there are none, or no room for them."""
        settings, images = self.settings, self.images
        parts = self.method.frozen_part(settings.image_size)
        if parts is None or settings.store_bytes == 0:
            return None
        frozen, trained = parts
        sample = sample_of(frozen, images.plain, self.device)
        if sample.nbytes > settings.store_bytes:
            raise TrainingError(
                f"store_bytes is {settings.store_bytes}, and the features of one image take {sample.nbytes}; give "
                "more, or 0 to compute them in every epoch"
            )
        room = settings.store_bytes // sample.nbytes - len(images.val)
        num_views = {"none": 1, "flip": 2}.get(settings.augmentation, min(MOST_VIEWS, room // len(images.train)))
        if num_views == 0 or num_views * len(images.train) > room:
            self._say(bar, f"the features take more than the {settings.store_bytes} bytes that may be stored; they are "
                      "computed in every epoch")  # fmt: skip
            return None
        self.trained = trained
        of_val = Wanted(frozen, images.val, images.val, 1, sample)
        return Wanted(frozen, images.plain, images.train, num_views, sample), of_val

    def say_stored(self, bar: TrainingBar, wanted: Wanted, in_memory: bool) -> None:
        """Say what is being stored, and where."""
        self._say(bar, f"storing the features of {wanted.shape[1]} images in {wanted.num_views} views, "
                  f"{wanted.size_bytes / 1e6:.0f} MB in {'memory' if in_memory else 'the run folder'}")  # fmt: skip

    def drop_store(self) -> None:
        """Let go of stored features."""
        self.train_set, self.val_set = self.images.train, self.images.val

    def _repair(self, last: Checkpoint) -> None:
        """Do what a run that was killed right after saving `last` did not come to."""
        self.run.write_tables(self.history, self.selection)
        if self._last_is_best():
            self._save_best(last.model)

    def train(self, bar: TrainingBar) -> None:
        """All epochs that are still to be done, after the start as epoch 0. Raises TrainingError when the loss is no
        longer finite."""
        bar.begin(self.settings.epochs, len(self.images.train))
        if not self.history:
            start_s = time.perf_counter()
            val = self._validate(self.trained, self.val_set)
            seconds = time.perf_counter() - start_s
            self._finish_epoch(Epoch(0, None, None, val.loss, val.accuracy, None, None, seconds), bar)
            if self.on_start is not None:
                self.on_start(FitResult(self.method.finish(), val, self.history[0], tuple(self.history)))
        self._keep_to_time()
        with self.ranks.watched():
            self._call_others()
            self.stepped = self.ranks.wrap(self.trained)
            while self._next_epoch() is not None:
                self.run_epoch(bar)
                self._keep_to_time()
        self.ranks.leave()
        self._say_why_stopped(bar)

    def follow(self) -> None:
        """In another process than the first: take up what that has saved last, and compute this one's share of every
        epoch until there is no more; nothing is written."""
        self._load()
        with self.ranks.watched(), TrainingBar(1, 1, quiet=True) as bar:
            self.stepped = self.ranks.wrap(self.trained)
            while (epoch := self._next_epoch()) is not None:
                self._train(epoch, bar)
                self._val_logits()
        self.ranks.leave()

    def _call_others(self) -> None:
        """Tell the other processes what is trained, for them to `follow`."""
        if self.ranks.count > 1:
            self.ranks.join(self.device)
            about = {"run": str(self.run.path.absolute()), "training": self.settings.to_dict()}
            self.ranks.said({**about, "splits": self.splits.to_dict()}, self.device)

    def _next_epoch(self) -> int | None:
        """The epoch that is to be done now, or None. The first process says so to all, and how many there will be."""
        words = [None if self.is_finished else self.done + 1, self.epochs]
        epoch, self.epochs = self.ranks.said(words, self.device)
        return None if epoch is None else int(epoch)

    def _keep_to_time(self) -> None:
        """Plan as many epochs as there is time for, so that the learning rate falls to the end of them."""
        if self.deadline_s is None:
            return
        left_s = self.deadline_s - time.monotonic()
        epoch_s = self.history[-1].seconds if self.done else 0.0
        more = self.epochs if epoch_s == 0 else int(left_s / epoch_s)
        self.epochs = min(self.epochs, self.done + (max(0, more) if left_s > 0 else 0))

    def run_epoch(self, bar: TrainingBar) -> None:
        """Train, validate and save. Raises TrainingError when the loss is not finite; nothing is saved then."""
        epoch = self.done + 1
        bar.start_epoch(epoch)
        start_s = time.perf_counter()
        loss, accuracy = self._train(epoch, bar)
        self._update_norms(epoch)
        trained_s = time.perf_counter() - start_s
        body_val_accuracy = self.method.tune(self.trained, plain_loader(self.val_set, self.settings), self.device)
        val = self._validate_epoch()
        row = Epoch(
            epoch=epoch,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            lr=self.settings.lr * self._lr_factor(epoch * self.steps - 1),
            images_per_s=len(self.images.train) / trained_s,
            seconds=time.perf_counter() - start_s,
            body_val_accuracy=body_val_accuracy,
        )
        self.selection += [{"epoch": epoch, **record} for record in self.method.record()]
        self._finish_epoch(row, bar)

    def _finish_epoch(self, row: Epoch, bar: TrainingBar) -> None:
        self.history.append(row)
        self._save()
        self._say(bar, _line(row))

    def _train(self, epoch: int, bar: TrainingBar) -> tuple[float, float]:
        """One pass over the training images; mean loss and accuracy."""
        torch.manual_seed(epoch_seed(self.settings.seed, epoch) + self.ranks.rank)
        self.method.model.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, right ones, images
        first = (epoch - 1) * self.steps
        batches = train_loader(self.train_set, self.settings, epoch, self.device, self.ranks)
        for step, (images, labels) in enumerate(batches):
            totals += self._step(images.to(self.device), labels.to(self.device), first + step)
            bar.advance(len(images) * self.ranks.count)
            if step % CHECK_EVERY == 0 or step == self.steps - 1:
                of_all = self.ranks.sum(totals)
                loss, accuracy = (of_all[:2] / of_all[2]).tolist()
                self._require_finite(of_all[0], epoch)
                bar.show(loss, accuracy)
        return loss, accuracy

    def _update_norms(self, epoch: int) -> None:
        """Take the statistics of batch norms with the weights of the epoch's end, where stored features make that
        cheap: those that were gathered on the way are of other weights, and can be far off while the learning rate is
        high (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3)."""
        if isinstance(self.train_set, FeatureStore):
            batches = train_loader(self.train_set, self.settings, epoch, self.device)
            update_bn(islice(batches, _NORM_BATCHES), self.trained, self.device)

    def _step(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """One step of the optimiser; (sum of the loss, right ones, images)."""
        self.method.set_progress(step / (self.steps * self.epochs))
        loss, logits = self.stepper.step(self.stepped, images, labels, self._lr_factor(step))
        right = are_right(logits, labels).sum()
        return torch.stack([loss.double() * len(labels), right.double(), right.new_tensor(len(labels))])

    def _lr_factor(self, step: int) -> float:
        return lr_factor(step, self.steps * self.epochs, self.steps * self.settings.warmup_epochs)

    def _require_finite(self, loss: Tensor, epoch: int) -> None:
        if not bool(loss.isfinite()) and self.ranks.rank == 0:
            message = (
                f"the loss is no longer a finite number in epoch {epoch}: the learning rate {self.settings.lr:g} is "
                f"probably too high; try {self.settings.lr / 10:g}, or warmup_epochs, in a new run. {self.kept()}"
            )
            self.run.log(message)
            raise DivergedError(message)

    def _validate(self, model: nn.Module, images: ImageSet | FeatureStore) -> Metrics:
        settings, classes = self.settings, self.splits.classes
        return evaluate(model, images, classes, settings.batch_size, self.device, settings.num_workers)

    def _validate_epoch(self) -> Metrics:
        if self.ranks.count == 1:
            return self._validate(self.trained, self.val_set)
        return compute_metrics(self._val_logits(), self.images.val.labels, self.splits.classes)

    def _val_logits(self) -> Tensor:
        """Of all validation images, (N, num_classes); every process computes those of its share."""
        self.ranks.share_buffers(self.trained)
        settings, val = self.settings, self.images.val
        own = list(self.ranks.share(range(len(val))))
        whole = torch.zeros(len(val), len(self.splits.classes))
        if own:
            batches = val.subset(own), settings.batch_size, self.device, settings.num_workers
            whole[own] = predict(self.trained, *batches)[0]
        return self.ranks.sum(whole.to(self.device)).cpu()

    def _save(self) -> None:
        """`last` first: from it everything else can be written again."""
        state = self.method.trainable_state()
        memory = optimizer_tensors(self.stepper.optimizer)
        Checkpoint(self.config, state, memory, self.history, self.selection).save(self.run.last)
        if self._last_is_best():
            self._save_best(state)
        self.run.write_tables(self.history, self.selection)

    def _last_is_best(self) -> bool:
        return best_epoch(self.history, len(self.images.val)) is self.history[-1]

    def _save_best(self, state: dict[str, Tensor]) -> None:
        Checkpoint(self.config, state, history=self.history).save(self.run.best)

    def _say_why_stopped(self, bar: TrainingBar) -> None:
        """Say so if training ended before its time."""
        if self.done < self.epochs:
            self._say(bar, f"stopped: the last {self.settings.patience} epochs brought nothing better on validation")
        elif self.done < self.settings.epochs:
            self._say(bar, f"stopped after {self.done} epochs: there is no time for more")

    def kept(self) -> str:
        """What an interruption leaves."""
        return f"{self.done} of {self.settings.epochs} epochs are safe in {self.run.path}."

    def result(self) -> FitResult:
        """The best model as it ships, and how good it is on the validation split."""
        result = self.best_so_far()
        self.run.log(f"finished after {self.done} epochs; the best is epoch {result.best.epoch}")
        self.run.drop_features()
        return result

    def best_so_far(self) -> FitResult:
        """The same before the end, once the start is validated."""
        best = Checkpoint.load(self.run.best)
        self.method.load_trainable_state(best.model)
        model = self.method.finish()
        self.run.write_subscription(self.method.subscription())
        (row,) = (row for row in self.history if row.epoch == epochs_done(best.history))
        return FitResult(model, self._validate(model, self.images.val), row, tuple(self.history))

    def _say(self, bar: TrainingBar, line: str) -> None:
        self.run.log(line)
        bar.say(self.prefix + line)


def _validate_precision(model: nn.Module, settings: TrainSettings) -> None:
    for module in model.modules():
        if isinstance(module, Source) and module.precision != settings.precision:
            raise TrainingError(
                f"the settings say precision {settings.precision!r} and the source was loaded in {module.precision!r}; "
                f"load it with load_source(..., precision={settings.precision!r})"
            )


def _line(row: Epoch) -> str:
    if row.epoch == 0:
        return f"before the first step: validation loss {row.val_loss:.4f}, accuracy {row.val_accuracy:.1%}"
    alone = "" if row.body_val_accuracy is None else f" (without the linear head {row.body_val_accuracy:.1%})"
    return (
        f"epoch {row.epoch}: loss {row.train_loss:.4f}, accuracy {row.train_accuracy:.1%}; validation loss "
        f"{row.val_loss:.4f}, accuracy {row.val_accuracy:.1%}{alone}; {row.images_per_s:.0f} images/s, "
        f"{row.seconds:.1f} s"
    )
