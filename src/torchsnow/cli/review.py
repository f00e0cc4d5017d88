"""`torchsnow review`: which images of a data set are worth a look."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchsnow.cli.data_options import HUB, HubFolder, validate_outside
from torchsnow.cli.output import counting, load_checked, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.review import Review

PAGE, MOVES = "review.html", "moves.csv"
_FEW_ROWS = 10


def review(
    data: Annotated[str, typer.Argument(help="Labelled images, as for train.")],
    task: Annotated[str, typer.Option(help="Name of the task.")],
    hub: HubFolder = HUB,
    splits: Annotated[
        Path | None, typer.Option(help="splits.json of the run, to see duplicates across its splits.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page and the table of moves.")] = Path("review"),
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Show the images that are worth a look, on one page.

    The likely mislabelled, the confidently wrong, the most doubtful, near-
    duplicates within and across splits, and rare classes. Edit moves.csv, then
    `torchsnow relabel` moves images to other classes.

    Example: torchsnow review photos/ --hub my-hub --task screws
    """
    from torchsnow.hub import Hub
    from torchsnow.io.files import clear_os_errors
    from torchsnow.review import review_data, review_page, validate_reviewable, write_moves
    from torchsnow.train import torch_device

    on_device, opened = torch_device(device), Hub.open(hub)
    validate_reviewable(opened.info(task))  # before the images, which take longer
    validate_outside(data, out, "--out")
    with clear_os_errors("make the folder", out):
        out.mkdir(parents=True, exist_ok=True)
    loaded = load_checked(data, quiet=json, distinct_names=True)
    opened.source.to(on_device)
    with counting("classifying images", quiet=json) as progress:
        found = review_data(opened, task, loaded, splits, progress)
    with counting("drawing pictures", quiet=json) as progress:
        page = review_page(found, opened, progress)
    write_moves(found, out / MOVES)
    page.save(out / PAGE)
    if json:
        print_json({"page": str(out / PAGE), "moves": str(out / MOVES), **_document(found)})
        return
    numbers = {
        "likely mislabelled": len(found.mislabelled),
        "confidently wrong": len(found.wrong),
        "groups of near-duplicates": len(found.duplicates),
        "rare classes": len(found.rare),
    }
    print_table(["found", "number"], [[what, number] for what, number in numbers.items()])
    if found.mislabelled:
        rows = [[one.image.path, one.image.label, one.likelier] for one in found.mislabelled[:_FEW_ROWS]]
        print_table(["likely mislabelled", "class", "likelier"], rows)
    say(f"{found.num_images} images reviewed; open {out / PAGE}")
    if Path(data).is_dir():
        say(f"edit {out / MOVES}, then: torchsnow relabel {quote(data)} --moves {quote(str(out / MOVES))}")


def _document(found: Review) -> dict[str, Any]:
    return {
        "images": found.num_images,
        "mislabelled": [
            {"path": one.image.path, "class": one.image.label, "likelier": one.likelier} for one in found.mislabelled
        ],
        "wrong": [
            {"path": one.path, "class": one.label, "taken_for": one.taken_for, "probability": one.probability}
            for one in found.wrong
        ],
        "duplicates": [
            [{"path": one.path, "class": one.label, "split": one.split} for one in group] for group in found.duplicates
        ],
        "rare": list(found.rare),
    }
