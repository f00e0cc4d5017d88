"""Training one task, or several at once that share the source's passes over their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch

from torchsnow.data import ImageSet, Splits
from torchsnow.errors import DivergedError, TrainingError
from torchsnow.source.features import Request
from torchsnow.train.batches import epoch_seed, plain_loader
from torchsnow.train.contract import Method, SharedMethod
from torchsnow.train.loop import FitResult, Loop, TaskRun
from torchsnow.train.progress import TrainingBar
from torchsnow.train.run_folder import RunFolder
from torchsnow.train.settings import TrainSettings
from torchsnow.train.store import IN_MEMORY_BYTES, FeatureStore, SharedImages, StoreWriter, View, Wanted, views_of

Planned = tuple[Loop, tuple[Wanted, Wanted] | None]
"""A run, and what is to be stored for it."""
_ALIKE = ("image_size", "crop_mode", "grey_range", "augmentation", "seed", "precision", "device")
"""Settings that say how images are shown."""


class Stopped(KeyboardInterrupt):
    """An interrupted training. `best_so_far` gives, task by task, the best model until then; None without any."""

    def __init__(self, message: str, best_so_far: Sequence[Callable[[], FitResult] | None]) -> None:
        super().__init__(message)
        self.best_so_far = best_so_far


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

    Everything is written to `run`. With `resume` a run that was stopped, in whatever way, continues after its last
    finished epoch and ends as if it had not been; of a finished run this gives the result. On the CPU the numbers
    are the same bit by bit. torch's global generators are left as they were. A method that has a frozen part sees
    each image once, if they are not augmented. `pool` is for runs on the same data at the same size, which then decode
    each image once (see `torchsnow.train.batches.plain_images`). `chosen` says which settings were chosen for the
    caller, and why; it is written into args.yaml next to them.

    Raises TrainingError when `run` holds a run already (without `resume`) or none or another one (with it), when
    another process works in it, and when there are too few images; DivergedError when the loss is no longer a finite
    number.
    Stopped, a KeyboardInterrupt, says how to continue.
    """
    task = TaskRun(method, splits, settings, run, pool, dict(chosen or {}))
    (result,) = fit_tasks([task], resume=resume, quiet=quiet)
    if isinstance(result, DivergedError):
        raise result
    return result


def fit_tasks(
    tasks: Sequence[TaskRun], *, resume: bool = False, quiet: bool = False
) -> list[FitResult | DivergedError]:
    """Train several tasks, each as `fit` would. Those that train from stored features share one source pass per image
    and view, and one to start with; then they are trained one after another.

    Several tasks need a `SharedMethod` each, on one source. One whose loss is no longer a finite number is given up,
    and the error is its result. With `resume` every task continues from its own last finished epoch. Raises what `fit`
    raises, and TrainingError for tasks that do not show images alike; Stopped says where the tasks stand.
    """
    _validate_alike(tasks)
    tasks[0].settings.validate_shared_memory()
    loops = [Loop(task) for task in tasks]
    settings = tasks[0].settings
    if resume and not any(loop.run.is_begun for loop in loops):
        loops[0].run.validate_begun()
    with ExitStack() as owned:
        for loop in loops:
            owned.enter_context(loop.run.owned())
            if not resume:
                loop.run.validate_vacant()
        owned.enter_context(_own_randomness(loops[0].device))
        bar = owned.enter_context(TrainingBar(settings.epochs, len(loops[0].images.train), quiet))
        results: dict[Loop, FitResult | DivergedError] = {}
        try:
            _start(loops, resume, bar)
            planned: list[Planned] = [(loop, None if loop.is_finished else loop.plan_store(bar)) for loop in loops]
            for part in _parts(planned, settings.store_bytes):
                _store([(loop, wanted) for loop, wanted in part if wanted is not None], bar)
                for loop, _ in part:
                    results[loop] = _trained(loop, bar)
            return [results[loop] for loop in loops]
        except KeyboardInterrupt:
            for loop in loops:
                loop.run.log(f"stopped. {loop.kept()} Resume the run to continue from there")
            kept = " ".join(loop.prefix + loop.kept() for loop in loops)
            best = [loop.best_so_far if loop.history else None for loop in loops]
            raise Stopped(f"stopped. {kept}", best) from None


def store_features(task: TaskRun, *, quiet: bool = False) -> tuple[FeatureStore, FeatureStore]:
    """Start a task's method, and compute the features of its training and of its validation images, without training.

    Raises TrainingError where there is nothing to store, or no room for it, and when another process works in its
    folder.
    """
    loop = Loop(task)
    with loop.run.owned(), _own_randomness(loop.device), TrainingBar(1, len(loop.images.train), quiet) as bar:
        bar.prepare()
        _start_alone(loop)
        if (wanted := loop.plan_store(bar)) is None:
            raise TrainingError("the features of all images cannot be stored, so they cannot serve several trainings")
        _store([(loop, wanted)], bar)
    assert isinstance(loop.train_set, FeatureStore)
    assert isinstance(loop.val_set, FeatureStore)
    return loop.train_set, loop.val_set


def fit_stored(task: TaskRun, stored: tuple[FeatureStore, FeatureStore]) -> Callable[[], FitResult]:
    """Train a task as `fit` would, but from features that are there already, and go on with it if it was begun; nothing
    is shown. Returns what gives the best model. The method's `frozen_part` must take such features.

    Raises TrainingError when another run or another process is in the folder, and DivergedError; Stopped, a
    KeyboardInterrupt, has the best model until then. What `task.run.on_epoch` raises ends it too.
    """
    loop = Loop(task)
    with loop.run.owned(), _own_randomness(loop.device), TrainingBar(1, len(loop.images.train), quiet=True) as bar:
        try:
            _start([loop], resume=True, bar=bar)
            parts = loop.method.frozen_part(loop.settings.image_size)
            assert parts is not None
            loop.trained = parts[1].to(loop.device)
            loop.train_set, loop.val_set = stored
            loop.train(bar)
        except KeyboardInterrupt:
            raise Stopped(f"stopped. {loop.kept()}", [loop.best_so_far if loop.history else None]) from None
    return loop.best_so_far


def _trained(loop: Loop, bar: TrainingBar) -> FitResult | DivergedError:
    try:
        loop.train(bar)
        return loop.result()
    except DivergedError as error:
        return error
    finally:
        loop.drop_store()


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _validate_alike(tasks: Sequence[TaskRun]) -> None:
    for name in _ALIKE:
        values = {getattr(task.settings, name) for task in tasks}
        if len(values) > 1:
            given = ", ".join(map(repr, sorted(values, key=str)))
            raise TrainingError(f"the tasks differ in {name} ({given}), so no pass over their images can be shared")


def _start(loops: Sequence[Loop], resume: bool, bar: TrainingBar) -> None:
    """Bring every run to its last finished epoch, or let its method collect feature statistics, in one pass for all."""
    begun = [loop for loop in loops if resume and loop.run.last.exists()]
    fresh = [loop for loop in loops if loop not in begun]
    for loop in begun:
        loop.restore(bar)
    for loop in fresh:
        loop.write_down()
    if fresh:
        bar.prepare()
    if len(fresh) == 1:
        _start_alone(fresh[0])
    elif fresh:
        _start_together(fresh)


def _start_alone(loop: Loop) -> None:
    torch.manual_seed(epoch_seed(loop.settings.seed, 0))
    loop.method.start(plain_loader(loop.images.plain, loop.settings), loop.device)


def _start_together(loops: Sequence[Loop]) -> None:
    methods = [cast("SharedMethod", loop.method) for loop in loops]
    shared, device = SharedImages([loop.images.plain for loop in loops]), loops[0].device
    labels = [loop.images.plain.labels for loop in loops]
    stats = [method.statistics(device) for method in methods]
    request = Request.together([own.request for own in stats])
    if not request.is_empty:
        for images, numbers in plain_loader(shared.images, loops[0].settings):
            features = methods[0].source(images.to(device), request)
            for place, own in enumerate(stats):
                rows, at = shared.rows(place, numbers)
                if len(at):
                    of_task = features if isinstance(rows, slice) else features.rows(rows.to(device))
                    own.add(of_task, labels[place][at].to(device))
    for loop, method in zip(loops, methods, strict=True):
        torch.manual_seed(epoch_seed(loop.settings.seed, 0))
        method.init_from_stats(stats.pop(0))  # the values of all images: each is let go of after its use


def _parts(planned: Sequence[Planned], room: int) -> Iterator[list[Planned]]:
    """As many runs at a time as there is room for, in bytes, for their stored features."""
    part: list[Planned] = []
    size_bytes = 0
    for loop, wanted in planned:
        own = sum(one.size_bytes for one in wanted or ())
        if part and size_bytes + own > room:
            yield part
            part, size_bytes = [], 0
        part.append((loop, wanted))
        size_bytes += own
    if part:
        yield part


def _store(planned: Sequence[tuple[Loop, tuple[Wanted, Wanted]]], bar: TrainingBar) -> None:
    """Compute the features that some runs want stored."""
    if not planned:
        return
    loops = [loop for loop, _ in planned]
    train, val = ([wanted[at] for _, wanted in planned] for at in range(2))
    settings, device = loops[0].settings, loops[0].device
    in_memory = sum(one.size_bytes for one in (*train, *val)) <= IN_MEMORY_BYTES
    for loop, one in zip(loops, train, strict=True):
        loop.say_stored(bar, one, in_memory)
    bar.store()
    views = views_of(settings.augmentation, max(one.num_views for one in train), epoch_seed(settings.seed, 0))
    writer = StoreWriter(train, views, settings.batch_size, device)
    if in_memory:
        of_train = writer.in_memory(settings.num_workers, bar.stored)
    else:
        files = [loop.run.features for loop in loops]
        of_train = writer.in_files(files, [loop.config for loop in loops], settings.num_workers, bar.stored)
    of_val = StoreWriter(val, [View()], settings.batch_size, device).in_memory(settings.num_workers, bar.stored)
    for loop, train_set, val_set in zip(loops, of_train, of_val, strict=True):
        loop.train_set, loop.val_set = train_set, val_set
