"""results.csv: one row per cell, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchsnow.errors import ExperimentError
from torchsnow.io.files import plain_row, write_atomically
from torchsnow.report.results import Cell, Results

_PLACE = ("source", "data", "method", "seed")
_PLAIN = (
    *("train_images", "val_images", "test_images", "num_classes", "lr", "best_epoch"),
    *("trained_params", "stored_bytes", "seconds", "note"),
)


def write_csv(results: Results, path: Path) -> None:
    """One row per cell; swept settings are columns "variant.NAME", scores "val.NAME" and "test.NAME",
    and the task as it shipped "shipped.NAME".

    What a cell does not have is empty. Raises ExperimentError when the disk refuses.
    """
    rows = [_row(cell) for cell in results.cells]
    variants = dict.fromkeys(key for row in rows for key in row if key.startswith("variant."))
    scores = dict.fromkeys(key for row in rows for key in row if key.startswith(("val.", "test.", "shipped.")))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*_PLACE, *variants, *scores, *_PLAIN], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(plain_row, rows))
    write_atomically(path, text.getvalue(), ExperimentError)


def _row(cell: Cell) -> dict[str, Any]:
    row = {key: getattr(cell, key) for key in (*_PLACE, *_PLAIN)}
    parts = {"val": asdict(cell.val), "test": asdict(cell.test), "shipped": asdict(cell.shipped)}
    for prefix, values in {"variant": cell.variant, **parts}.items():
        row.update({f"{prefix}.{key}": value for key, value in values.items()})
    return row
