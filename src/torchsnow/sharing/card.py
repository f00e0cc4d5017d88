"""The page that people read before they use somebody's tasks, made of what the task files say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import yaml

from torchsnow.hub import Entry
from torchsnow.task_file import SourceInfo, TaskInfo
from torchsnow.train.evaluate import accuracy_interval

MOST_CLASSES = 200
"""Of a task, that are named; the task file names all."""
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")
_SPLITS = {"test": "test", "val": "validation"}
_SETTINGS = ("data", "method", "preset", "epochs", "image_size", "augmentation", "seed")


def model_card(
    repository: str,
    source: SourceInfo,
    tasks: Mapping[str, TaskInfo],
    entries: Mapping[str, Entry],
    licence: str | None,
) -> str:
    """README.md of a repository: Markdown with the metadata that the Hugging Face Hub reads.

    `licence` is one of its identifiers, such as "apache-2.0"; None says that no licence is stated.
    """
    known = timm.get_pretrained_cfg(source.name) if timm.is_model_pretrained(source.name) else None
    base_model = known.hf_hub_id if known is not None and source.weights == "pretrained" else None
    about = {
        "license": licence,
        "library_name": "torchsnow",
        "pipeline_tag": "image-classification",
        "tags": ["torchsnow", "transfer-learning", "channel-pooling"],
        "base_model": base_model,
    }
    head = yaml.safe_dump({key: value for key, value in about.items() if value is not None}, sort_keys=False)
    own = f"Tasks: {licence}." if licence is not None else "Tasks: not stated; ask the author before you use them."
    terms = known.license if known is not None and base_model is not None else None
    parts = [
        f"---\n{head}---",
        f"# {_plain(repository)}",
        f"Image classification tasks for [torchsnow](https://pypi.org/project/torchsnow): {len(tasks)} on one frozen "
        "source, answered together from one pass over an image.",
        f"## Use\n\n```sh\npip install 'torchsnow[hub]'\ntorchsnow pull {repository} --hub my-hub\n"
        "torchsnow predict photo.jpg --hub my-hub\n```",
        "Files are safetensors and JSON; nothing is unpickled. `pull` compares every file with its SHA-256 and tries "
        "every task before it is added.",
        "## Source\n\n"
        + _table(
            ["property", "value"],
            [
                ["network", source.name],
                ["weights", source.weights],
                ["fingerprint", source.fingerprint],
                ["precision", source.precision],
            ],
        ),
        "The weights of the source are not in this repository.",
        f"## Licence\n\n{own} Source: {terms or 'see where its weights come from'}.",
        *(_section(name, info, entries[name]) for name, info in sorted(tasks.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _section(name: str, info: TaskInfo, entry: Entry) -> str:
    more = len(info.classes) - MOST_CLASSES
    classes = ", ".join(map(_plain, info.classes[:MOST_CLASSES])) + (f" and {more} more" if more > 0 else "")
    training = [[key, info.training[key]] for key in _SETTINGS if key in info.training]
    parts = [
        f"## Task {_plain(name)}",
        f"{len(info.classes)} classes: {classes}.",
        _metrics(info.metrics) or "No metrics are stored with this task.",
        _table(["training", "value"], training) if training else "The task file does not say how it was trained.",
        f"{entry.size_bytes / 1e6:.2f} MB, SHA-256 `{entry.sha256}`, created {_plain(info.created)}; pictures are "
        f"shown at {info.image_size} px, {_plain(info.crop_mode)}.",
    ]
    return "\n\n".join(parts)


def _metrics(metrics: Mapping[str, Any]) -> str | None:
    rows = []
    for split, word in _SPLITS.items():
        values = metrics.get(split) or {}
        accuracy, num_images = values.get("accuracy"), values.get("num_images")
        if accuracy is None:
            continue
        interval = "-"
        if num_images:
            low, high = accuracy_interval(accuracy, num_images)
            interval = f"{low:.1%} to {high:.1%}"
        balanced = values.get("balanced_accuracy")
        rows.append(
            [word, num_images or "-", f"{accuracy:.1%}", interval, "-" if balanced is None else f"{balanced:.1%}"]
        )
    return _table(["split", "images", "accuracy", "95% interval", "balanced accuracy"], rows) if rows else None


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    """Text without any effect in Markdown: names of classes and data can hold anything."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return _MARKUP.sub(r"\\\1", words)
