"""What the tasks of a hub say of image files: batch by batch, one source pass for all tasks of one framing."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from torchsnow.data import eval_transform, read_image
from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.errors import DataError, HubError, SourceError
from torchsnow.hub import Hub
from torchsnow.hub.live import unknown_scores
from torchsnow.source import Framing, Request, Source
from torchsnow.source.grid import ONE_CELL
from torchsnow.task_file import Task
from torchsnow.task_file.labels import names_of, probabilities

BATCH_SIZE = 32
_DECODING_THREADS = min(16, os.cpu_count() or 1)

OnBad = Callable[[Path, str], None]
Progress = Callable[[int, int], None]
Views = Mapping[Framing, Tensor]
"""One image (3, S, S) in every framing."""


@dataclass(frozen=True)
class Prediction:
    """What one task says of one image: probabilities by class name, the most likely first, and its `labels`: the most
    likely class alone, or of a task with thresholds all that reach theirs.

    An `unknown_score` above 1 says that the image is unlike those that the task was trained for, so that its classes
    mean little; None where the task's file does not know.
    """

    image: str
    task: str
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    unknown_score: float | None = None

    @property
    def label(self) -> str:
        """The most likely class."""
        return next(iter(self.probabilities))


@dataclass(frozen=True)
class Batch:
    """What was computed of some image files, B of them: `logits` (B, num_classes) and, where known, `unknown_scores`
    (B,) by task, and by framing, where they were asked for, the `features`: averages of all taps and the source's last
    features (B, num_chs + num_features), the last ones behind. All are on the CPU."""

    files: tuple[Path, ...]
    logits: dict[str, Tensor]
    unknown_scores: dict[str, Tensor]
    features: dict[Framing, Tensor]


def predict_images(
    hub: Hub,
    files: Sequence[Path],
    names: Sequence[str] | None,
    on_bad: OnBad,
    *,
    top: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Iterator[Prediction]:
    """Classify image files by the named tasks (by default all): image by image, and for each task by task.

    A prediction has the `top` most likely classes, by default all. A file that is no usable image, or that a task
    cannot answer for, is passed to `on_bad` with the reason, and so is the hub with a task that is damaged, and the
    others answer; a damaged task that is asked for by name raises HubError. Raises HubError for an unknown task and
    for a hub without any, before the first image is read.
    """
    tasks = usable_tasks(hub, names, on_bad)
    return _predictions(hub.source, tasks, files, on_bad, top, progress)


def usable_tasks(hub: Hub, names: Sequence[str] | None, on_bad: OnBad) -> dict[str, Task]:
    """The named tasks, by default all that are not damaged. Raises HubError as `predict_images` does."""
    on_damaged = None if names is not None else lambda problem: on_bad(hub.folder.path, problem.message)
    tasks = hub.tasks(names, on_damaged)
    if not hub.names():
        raise HubError(f"the hub {hub.folder.path} has no tasks yet; train one first")
    return tasks


def run_tasks(
    source: Source,
    tasks: Mapping[str, Task],
    files: Sequence[Path],
    on_bad: OnBad,
    *,
    features: bool = False,
    progress: Progress = lambda done, total: None,
) -> Iterator[Batch]:
    """All tasks on all files, folded for inference, in batches of at most `BATCH_SIZE`; on the source's device.

    The next images are decoded while a batch is computed. Files that cannot be read are passed to `on_bad` and left
    out; tasks whose images the source cannot take have no logits, and `on_bad` is told for every file. `progress` is
    called with (files done, files in all).
    """
    by_framing: dict[Framing, dict[str, tuple[Task, Delta]]] = {}
    for name, task in tasks.items():
        by_framing.setdefault(task.framing, {})[name] = task, fold(task.delta)
    framings = sorted(by_framing)
    decoded, done = _decoded(source, framings, files), 0
    while pairs := list(islice(decoded, BATCH_SIZE)):
        good: list[tuple[Path, Views]] = []
        for file, views in pairs:
            if isinstance(views, DataError):
                on_bad(file, str(views))
            else:
                good.append((file, views))
        if good:
            yield _batch(source, by_framing, good, on_bad, features)
        done += len(pairs)
        progress(done, len(files))


def _batch(
    source: Source,
    by_framing: Mapping[Framing, Mapping[str, tuple[Task, Delta]]],
    images: Sequence[tuple[Path, Views]],
    on_bad: OnBad,
    features: bool,
) -> Batch:
    batch = Batch(tuple(file for file, _ in images), {}, {}, {})
    device = next(source.parameters()).device
    channels = source.channels_of(tuple(source.taps)).to(device)
    extra = [Request(grids={ONE_CELL: channels}, last=True)] if features else []
    for framing, tasks in by_framing.items():
        pixels = torch.stack([views[framing] for _, views in images]).to(device)
        requests = [delta.request(delta.choose()) for _, delta in tasks.values()]
        try:
            with torch.no_grad():
                maps = source(pixels, Request.together([*requests, *extra]))
                outputs = {name: delta.with_distance(maps) for name, (_, delta) in tasks.items()}
        except SourceError as error:  # in this framing: other tasks read images of another
            for file in batch.files:
                on_bad(file, f"no answer of {', '.join(tasks)} for {file}: {error}")
            continue
        for name, (logits, distances) in outputs.items():
            batch.logits[name] = logits.cpu()
            if (scores := unknown_scores(distances, tasks[name][0].unknown_above)) is not None:
                batch.unknown_scores[name] = scores.cpu()
        if features:
            batch.features[framing] = maps.values(channels, last=True).float().cpu()
    return batch


def _decoded(
    source: Source, framings: Sequence[Framing], files: Sequence[Path]
) -> Iterator[tuple[Path, Views | DataError]]:
    """Every file's image in every framing, or why there is none; two batches are read ahead."""
    transforms = {framing: eval_transform(source.input_config, framing) for framing in framings}

    def read(file: Path) -> Views | DataError:
        try:
            image = read_image(file)
        except DataError as error:
            return error
        return {framing: transform(image) for framing, transform in transforms.items()}

    waiting: deque[tuple[Path, Future[Views | DataError]]] = deque()
    # Pillow decodes outside the interpreter lock. One torch thread in each: a team of its own would spin for its next
    # work on the cores that the pass needs.
    with ThreadPoolExecutor(_DECODING_THREADS, "decode", torch.set_num_threads, (1,)) as pool:
        for file in files:
            waiting.append((file, pool.submit(read, file)))
            if len(waiting) > 2 * BATCH_SIZE:
                first, views = waiting.popleft()
                yield first, views.result()
        while waiting:
            first, views = waiting.popleft()
            yield first, views.result()


def _predictions(
    source: Source,
    tasks: Mapping[str, Task],
    files: Sequence[Path],
    on_bad: OnBad,
    top: int | None,
    progress: Progress,
) -> Iterator[Prediction]:
    for batch in run_tasks(source, tasks, files, on_bad, progress=progress):
        likeliest = {
            name: _likeliest(batch.logits[name], task, top) for name, task in tasks.items() if name in batch.logits
        }
        unknown = {name: scores.tolist() for name, scores in batch.unknown_scores.items()}
        for row, file in enumerate(batch.files):
            for name, rows in likeliest.items():
                if (found := rows[row]) is None:
                    on_bad(file, f"no answer of {name} for {file}: its logits are not finite numbers")
                else:
                    yield Prediction(str(file), name, *found, unknown[name][row] if name in unknown else None)


def _likeliest(logits: Tensor, task: Task, top: int | None) -> list[tuple[dict[str, float], tuple[str, ...]] | None]:
    """For every row the `top` likeliest classes, the likeliest first, and its labels; None where logits are not
    finite."""
    classes = task.classes
    order = logits.argsort(stable=True, dim=1, descending=True).tolist()
    rows = zip(logits.isfinite().all(1).tolist(), probabilities(logits, task.thresholds).tolist(), order, strict=True)
    return [
        (
            {classes[place]: shares[place] for place in places[:top]},
            tuple(classes[place] for place in names_of(shares, places, task.thresholds)),
        )
        if is_finite
        else None
        for is_finite, shares, places in rows
    ]
