"""Which unlabelled images to label next, for all tasks of a hub in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsnow.source import Source
from torchsnow.task_file import Task
from torchsnow.task_file.labels import probabilities
from torchsnow.workflows.near_duplicates import standardised
from torchsnow.workflows.predictions import OnBad, Progress, run_tasks


@dataclass(frozen=True)
class Suggestion:
    """An image that a task would learn from: its likeliest class, how likely that is, and the `doubt`, 1 less the
    margin between the two likeliest classes (0 to 1)."""

    image: str
    task: str
    label: str
    probability: float
    doubt: float


def suggest_images(
    source: Source, tasks: Mapping[str, Task], files: Sequence[Path], count: int, on_bad: OnBad, progress: Progress
) -> list[Suggestion]:
    """For every task the `count` images to label next, the first one first.

    Each is the one with the largest product of the task's doubt and of the distance, by the source's features, to the
    nearest image that was chosen before: so they are doubtful, and unlike each other. Images that a task has no finite
    answer for are left out.
    """
    batches = list(run_tasks(source, tasks, files, on_bad, features=True, progress=progress))
    suggestions = []
    for name, task in tasks.items():
        answered = [batch for batch in batches if name in batch.logits]
        if not answered:
            continue
        logits = torch.cat([batch.logits[name] for batch in answered])
        features = torch.cat([batch.features[task.framing] for batch in answered])
        units = F.normalize(standardised(features[:, -source.num_features :]), dim=1)
        named = [file for batch in answered for file in batch.files]
        shares = probabilities(logits, task.thresholds)
        likeliest, places = shares.topk(2)
        doubt = 1 - likeliest[:, 0] + likeliest[:, 1] if task.thresholds is None else 1 - (2 * shares - 1).abs().amin(1)
        for row in doubtful_and_unlike(doubt.nan_to_num(-1), units, count):
            label, probability = task.classes[int(places[row, 0])], float(likeliest[row, 0])
            suggestions.append(Suggestion(str(named[row]), name, label, probability, float(doubt[row])))
    return suggestions


def doubtful_and_unlike(doubt: Tensor, units: Tensor, count: int) -> list[int]:
    """Up to `count` rows in the order of their choice; `units` (N, F) have length 1; doubts (N,) below 0 are out."""
    chosen: list[int] = []
    distance = torch.ones(len(doubt))
    for _ in range(min(count, int((doubt >= 0).sum()))):
        score = (doubt * distance).masked_fill(doubt < 0, -1)
        score[chosen] = -1
        chosen.append(int(score.argmax()))
        distance = torch.minimum(distance, (1 - units @ units[chosen[-1]]).clamp_min(0) / 2)
    return chosen
