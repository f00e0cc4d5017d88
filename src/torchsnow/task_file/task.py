"""A task: a name, its classes, its settled delta and the source it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import timm
import torch
from torch import Tensor

from torchsnow.delta import Delta
from torchsnow.delta.delta import GRID
from torchsnow.errors import TaskFileError
from torchsnow.pooling import Subscription
from torchsnow.source import FeatureMaps, Source
from torchsnow.source.config import Framing
from torchsnow.task_file.info import TaskInfo, check_classes, check_framing, check_task_name, check_training
from torchsnow.task_file.metrics import kept_metrics
from torchsnow.task_file.source_info import SourceInfo


@dataclass(frozen=True, eq=False, repr=False)
class Task(TaskInfo):
    """A task with its settled delta."""

    delta: Delta

    def unknown_scores(self, features: FeatureMaps) -> Tensor | None:
        """Of B images, by a source pass that was asked for this task (B,): above 1, an image is unlike those that the
        task was trained for. None where that is not known."""
        if self.unknown_above is None or (distances := self.delta.distance(features)) is None:
            return None
        return distances / self.unknown_above


def make_task(
    source: Source,
    delta: Delta,
    name: str,
    classes: Sequence[str],
    framing: Framing | None = None,
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    unknown_above: float | None = None,
) -> Task:
    """A new task from a source and a settled delta; `framing` is how pictures are shown to it, by default whole and at
    the source's own size.

    `training` (settings) is a JSON object without NaN; `metrics` are results by split, of which `kept_metrics` says
    what is kept. Raises TaskFileError for anything that could not be stored.
    """
    framing = Framing(source.input_config.input_size[1]) if framing is None else framing
    check_task_name(name)
    check_classes(classes, delta.spec.num_classes)
    check_framing(framing)
    if not delta.fixed:
        raise TaskFileError(
            "this delta is not settled: a task stores the chosen channels only; use delta.settle(source)"
        )
    plain = _plain("training", training or {})
    check_training(plain)
    return Task(
        name=name,
        classes=tuple(classes),
        spec=delta.spec,
        source_info=SourceInfo.of(source),
        subscription=subscription_of(delta),
        image_size=framing.image_size,
        crop_mode=framing.crop_mode,
        unknown_above=unknown_above,
        training=plain,
        metrics=_kept(_plain("metrics", metrics or {})),
        versions={"torchsnow": version("torchsnow"), "torch": str(torch.__version__), "timm": timm.__version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        delta=delta,
    )


def subscription_of(delta: Delta) -> dict[str, int]:
    """The number of chosen channels of a settled delta, by tap name, those of a grid body as "grid", the head's last
    as "head"."""
    pools = [module for module in delta.pools.values() if isinstance(module, Subscription)]
    names = delta.taps if delta.grid_pool is None else [GRID]
    numbers = {name: pool.num_pooled for name, pool in zip(names, pools, strict=True)}
    head = getattr(delta.head, "pool", None)
    return numbers | ({"head": head.num_pooled} if isinstance(head, Subscription) else {})


def _kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return kept_metrics(metrics)
    except ValueError as error:
        raise TaskFileError(f"{error}; metrics are results by split, as in {{'val': metrics.to_dict()}}") from error


def _plain(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they will be read back: lists for tuples, texts for keys."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskFileError(
            f"{what} cannot be stored as JSON ({error}); give numbers, texts, lists and dicts"
        ) from error
    return plain
