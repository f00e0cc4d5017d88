"""Several tasks in one run: each batch of images passes through the source once, and every delta reads its part.

No task can tell that it is not alone. Each has its own optimiser, run folder, checkpoints and best epoch, and what it
draws at random starts, at every step, from the state that the generator would have if it were alone: behind the
augmentation of the batch. Tasks of one method on one source draw equally much, so the generator is then where the next
batch of each of them expects it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from torchsnow.errors import DivergedError, TrainingError
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.source import Source
from torchsnow.train.batches import epoch_seed
from torchsnow.train.evaluate import Metrics, judge
from torchsnow.train.fit import LOOK_EVERY, FitResult, Loop, fit
from torchsnow.train.history import is_finished
from torchsnow.train.progress import TrainingBar
from torchsnow.train.streams import LEAST_ROWS, SharedMethod, SharedTask, Stream, rows_with_labels


def fit_together(
    streams: Sequence[Stream], *, resume: bool = False, quiet: bool = False
) -> dict[str, FitResult | TrainingError]:
    """Train all tasks of all streams, each as `torchsnow.train.fit` would. Narrow copies share one source pass per
    step; grid deltas, which train from stored features, are trained one after another.

    At every step each stream gives a batch of its own; on CUDA one pass is over all of them, on the CPU one over each.
    A stream whose epoch is over waits for the others; a task that is finished, or has stopped by its patience, drops
    out. So does one whose loss is no longer a finite number: the others go on, and the error is its result.

    With `resume` every task goes on from its own last finished epoch. Raises what `fit` raises for a run folder that
    is taken, owned by another process or of another run, and KeyboardInterrupt, with where the tasks stand.
    """
    tasks = [(task, stream) for stream in streams for task in stream.tasks]
    with ExitStack() as owned:
        for task, _ in tasks:
            owned.enter_context(task.run.owned())
            if not resume:
                task.run.refuse_taken()
        if resume and not any(task.run.args.exists() for task, _ in tasks):
            tasks[0][0].run.refuse_empty()
        if any(task.method.trains_alone for task, _ in tasks):
            return {task.name: _fit_alone(task, stream, resume, quiet) for task, stream in tasks}
        return _fit_in_steps(streams, resume, quiet)


def _fit_alone(task: SharedTask, stream: Stream, resume: bool, quiet: bool) -> FitResult | TrainingError:
    """A task by itself, on the images that the stream has decoded; the error if it was given up."""
    resume = resume and task.run.args.exists()  # what was stopped may have begun some of its tasks only
    try:
        return fit(
            task.method, task.splits, task.settings, task.run,
            resume=resume, quiet=quiet, pool=stream.pool, chosen=task.chosen,
        )  # fmt: skip
    except DivergedError as error:
        return error


def _fit_in_steps(streams: Sequence[Stream], resume: bool, quiet: bool) -> dict[str, FitResult | TrainingError]:
    images = sum(len(stream.train) for stream in streams)
    bar = TrainingBar(max(stream.settings.epochs for stream in streams), images, quiet)
    together = Together(streams, bar)
    runs = together.runs
    with runs[0].loop.own_randomness(), bar:
        try:
            together.begin(resume)
            while together.epoch():
                pass
            return {run.task.name: run.error or run.loop.result() for run in runs}
        except KeyboardInterrupt:
            for run in runs:
                run.loop.stopped()
            safe = ", ".join(map(str, runs))
            raise KeyboardInterrupt(
                f"stopped. Epochs that are safe: {safe}. Resume the run to go on from there"
            ) from None


class _Run:
    """One task on its way; `error` is why it was given up."""

    def __init__(self, task: SharedTask, stream: Stream) -> None:
        self.task, self.stream = task, stream
        self.method: SharedMethod = task.method
        self.loop = Loop(task.method, task.splits, task.settings, task.run, stream.pool, task.chosen)
        self.loop.prefix, self.loop.steps = f"{task.name}: ", stream.steps
        self.error: TrainingError | None = None

    def __str__(self) -> str:
        return f"{self.task.name} {self.loop.done} of {self.task.settings.epochs}"

    @property
    def is_over(self) -> bool:
        settings = self.task.settings
        return self.error is not None or is_finished(self.loop.history, settings.epochs, settings.patience)

    def of_batch(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which images of a batch have labels, given those of all (B,), and these labels, on the task's device."""
        rows = rows_with_labels(labels)
        device = self.loop.device
        return (None, labels.to(device)) if rows is None else (rows.to(device), labels[rows].to(device))


@dataclass
class _Turn:
    """What a task does with one batch: which channels it reads of which images, and where its random numbers start."""

    run: _Run
    choice: dict[str, Tensor]
    rows: Tensor | None
    labels: Tensor
    random: list[Tensor]

    def features(self, of_stream: FeatureMaps) -> FeatureMaps:
        return of_stream if self.rows is None else of_stream.rows(self.rows)


class _Lane:
    """One stream in one epoch, with the random numbers that a run on it alone would draw."""

    def __init__(self, stream: Stream, runs: Sequence[_Run], epoch: int) -> None:
        self.stream, self.runs, self.device = stream, list(runs), runs[0].loop.device
        self.totals = {run.task.name: torch.zeros(3, dtype=torch.float64, device=self.device) for run in runs}
        torch.manual_seed(epoch_seed(stream.settings.seed, epoch))
        self.random = _random_state(self.device)
        self.first = (epoch - 1) * stream.steps
        self.step = -1
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(stream.train_loader(epoch, self.device))

    def turns(self) -> tuple[Tensor, list[_Turn]] | None:
        """The next batch of images, and what the tasks do with it; None when the epoch is over."""
        _set_random_state(self.random, self.device)
        batch = next(self.batches, None) if self.runs else None
        if batch is None:
            return None
        self.step += 1
        self.random = _random_state(self.device)
        return batch[0], [self._turn(run, batch[1]) for run in self.runs]

    def _turn(self, run: _Run, numbers: Tensor) -> _Turn:
        rows, labels = run.of_batch(self.stream.train_labels[run.task.name][numbers])
        _set_random_state(self.random, self.device)
        run.loop.set_progress(self.first + self.step)
        choice = run.method.delta.choose()
        return _Turn(run, choice, rows, labels, _random_state(self.device))

    def take(self, turns: Sequence[_Turn], features: Sequence[FeatureMaps]) -> None:
        """Let every task train on its part."""
        after: list[Tensor] | None = None
        for turn, of_stream in zip(turns, features, strict=True):
            if len(turn.labels) < LEAST_ROWS:
                continue
            run = turn.run
            _set_random_state(turn.random, self.device)
            model = partial(run.method.delta, choice=turn.choice)
            self.totals[run.task.name] += run.loop.step_on(
                model, turn.features(of_stream), turn.labels, self.first + self.step
            )
            after = after or _random_state(self.device)
        self.random = after or self.random

    def look(self, epoch: int) -> None:
        """Give up tasks whose loss is no longer finite."""
        for run in list(self.runs):
            try:
                run.loop.require_finite(self.totals[run.task.name][0], epoch)
            except TrainingError as error:
                run.error = error
                self.runs.remove(run)

    def result(self, run: _Run) -> tuple[float, float]:
        """Mean loss and accuracy of a task in this epoch so far."""
        totals = self.totals[run.task.name]
        loss, accuracy = (totals[:2] / totals[2]).tolist()
        return loss, accuracy


class Together:
    """All tasks of a run, on one source, and how far they are.

    `mixes`: whether the batches of all streams make one for the source. On a CPU that only costs: larger batches are
    no faster there, and are cut into parts again.
    """

    def __init__(self, streams: Sequence[Stream], bar: TrainingBar) -> None:
        self.bar = bar
        self.runs = [_Run(task, stream) for stream in streams for task in stream.tasks]
        self.device = self.runs[0].loop.device
        self.source: Source = self.runs[0].method.source
        self.mixes = self.device.type == "cuda"

    def begin(self, resume: bool) -> None:
        """Bring every task to its last finished epoch: to epoch 0, its start, if there is none."""
        started = [run for run in self.runs if run.task.run.last.exists()] if resume else []
        for run in started:
            run.loop.resume(self.bar)
        fresh = [run for run in self.runs if run not in started]
        for run in fresh:
            run.loop.write_down()
        self.bar.prepare()
        for stream, runs in _by_stream(fresh):
            self._start(stream, runs)
            start_s = time.perf_counter()
            for run, val in self._validate(stream, runs):
                run.loop.finish_start(val, time.perf_counter() - start_s, self.bar)

    def epoch(self) -> bool:
        """One more epoch of those tasks that are furthest behind; false when all are done."""
        waiting = [run for run in self.runs if not run.is_over]
        if not waiting:
            return False
        epoch = min(run.loop.done for run in waiting) + 1
        start_s = time.perf_counter()
        lanes = self._train([run for run in waiting if run.loop.done == epoch - 1], epoch)
        trained_s = time.perf_counter() - start_s
        for lane in lanes:
            for run, val in self._validate(lane.stream, lane.runs):
                seconds = time.perf_counter() - start_s
                run.loop.finish_trained(lane.result(run), trained_s, val, seconds, self.bar)
        return True

    def _train(self, runs: Sequence[_Run], epoch: int) -> list[_Lane]:
        """One pass over the training images of all streams."""
        self.bar.start_epoch(epoch)
        for run in runs:
            run.method.model.train()
        lanes = [_Lane(stream, of_stream, epoch) for stream, of_stream in _by_stream(runs)]
        step = 0
        while ready := [(lane, turns) for lane in lanes if (turns := lane.turns()) is not None]:
            for lanes_of_pass in [ready] if self.mixes else [[one] for one in ready]:
                self._pass(lanes_of_pass)
            if step % LOOK_EVERY == 0:
                self._look(lanes, epoch)
            step += 1
        self._look(lanes, epoch)
        return lanes

    def _pass(self, ready: Sequence[tuple[_Lane, tuple[Tensor, list[_Turn]]]]) -> None:
        """One source pass over the batches of some lanes, then a step of each of their tasks."""
        parts: list[tuple[Request, slice]] = []
        start = 0
        for _, (images, turns) in ready:
            rows = slice(start, start + len(images))
            parts += [(turn.run.method.delta.request(turn.choice), rows) for turn in turns]
            start = rows.stop
        batch = torch.cat([images for _, (images, _) in ready]) if len(ready) > 1 else ready[0][1][0]
        features = iter(self.source.shared(batch.to(self.device), parts))
        for lane, (_, turns) in ready:
            lane.take(turns, [next(features) for _ in turns])
        self.bar.advance(len(batch))

    def _look(self, lanes: Sequence[_Lane], epoch: int) -> None:
        for lane in lanes:
            lane.look(epoch)
        results = torch.tensor([lane.result(run) for lane in lanes for run in lane.runs])
        if len(results):
            loss, accuracy = results.nanmean(0).tolist()
            self.bar.show(loss, accuracy)

    def _start(self, stream: Stream, runs: Sequence[_Run]) -> None:
        """Show the plain training images to every method, in one pass over them."""
        stats = {run: run.method.statistics(self.device) for run in runs}
        request = Request.together(own.request for own in stats.values())
        if not request.is_empty:
            for images, numbers in stream.plain_loader(stream.plain):
                features = self.source(images.to(self.device), request)
                for run, own in stats.items():
                    rows, labels = run.of_batch(stream.train_labels[run.task.name][numbers])
                    if len(labels):
                        own.add(features if rows is None else features.rows(rows), labels)
        for run in runs:
            torch.manual_seed(epoch_seed(stream.settings.seed, 0))
            run.method.init_from_stats(stats.pop(run))

    @torch.no_grad()
    def _validate(self, stream: Stream, runs: Sequence[_Run]) -> list[tuple[_Run, Metrics]]:
        """Metrics on the validation images, task by task; one whose logits are not finite is given up."""
        seen: dict[_Run, list[tuple[Tensor, Tensor]]] = {run: [] for run in runs}
        for run, features, choice, labels in self._val_features(stream, runs):
            logits: Tensor = run.method.delta(features, choice)
            seen[run].append((logits.float().cpu(), labels.cpu()))
        judged = []
        for run, parts in seen.items():
            logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            try:
                judged.append((run, judge(logits, labels, run.task.splits.classes)))
            except TrainingError as error:
                run.error = error
        return judged

    def _val_features(
        self, stream: Stream, runs: Sequence[_Run]
    ) -> Iterator[tuple[_Run, FeatureMaps, dict[str, Tensor], Tensor]]:
        """For every batch of validation images and every task: its features, its choice, and labels (n,)."""
        for run in runs:
            run.method.model.eval()
        if not runs:
            return
        choices = [run.method.delta.choose() for run in runs]
        for images, numbers in stream.plain_loader(stream.val):
            requests = (run.method.delta.request(choice) for run, choice in zip(runs, choices, strict=True))
            parts = [(request, slice(0, len(images))) for request in requests]
            shared = self.source.shared(images.to(self.device), parts)
            for run, choice, features in zip(runs, choices, shared, strict=True):
                rows, labels = run.of_batch(stream.val_labels[run.task.name][numbers])
                if len(labels):
                    yield run, features if rows is None else features.rows(rows), choice, labels


def _by_stream(runs: Sequence[_Run]) -> list[tuple[Stream, list[_Run]]]:
    streams = dict.fromkeys(run.stream for run in runs)
    return [(stream, [run for run in runs if run.stream is stream]) for stream in streams]


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the generators that training draws from."""
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
