"""Options that verbs share: the hub, and how images with labels are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.errors import TorchsnowError

HUB = Path("hub")
"""The folder of the hub, where none is named."""
HubFolder = Annotated[Path, typer.Option("--hub", help="Folder of the hub.")]
"""With the default `HUB`."""

PathColumn = Annotated[str, typer.Option("--path-column", help="Column of a CSV with the images; 'path' by default.")]
LabelColumn = Annotated[str, typer.Option("--label-column", help="Column of a CSV with the classes; else 'label'.")]
SplitColumn = Annotated[
    str,
    typer.Option("--split-column", help="Column of a CSV with train, val and test; else found by name or content."),
]
GroupColumn = Annotated[
    str, typer.Option("--group-column", help="Column of a CSV whose values stay in one split; 'group' by default.")
]
GreyRange = Annotated[
    tuple[int, int], typer.Option(help="Values of 16-bit grey images for black and white, as 0 4095 for 12 bits.")
]
DistinctNames = Annotated[
    bool, typer.Option("--distinct-names", help="Names of classes that look alike are different classes.")
]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links that leave the data's folder.")]


def validate_outside(data: str, folder: Path, option: str) -> None:
    """Raise TorchsnowError for a folder that is to be written and lies in a folder of images, or is one."""
    root = Path(data).expanduser().resolve()
    if root.is_dir() and folder.resolve().is_relative_to(root):
        raise TorchsnowError(
            f"{folder} lies inside the data {data}, where it would be taken for data next time: choose another {option}"
        )
