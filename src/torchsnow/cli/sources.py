"""`torchsnow sources`: which networks can be a source, and what a delta costs there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from torchsnow.cli.output import counting, percent, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.delta.survey import Row


def sources(
    name: Annotated[str | None, typer.Argument(help="A timm model; without it, one model of every family.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/sources.md.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which networks can be a source, and what a delta costs there.

    Taps, and a delta's share of the source's parameters and multiply-adds (for
    10 classes, K = M = 8). Without a name every family is tried, which takes a
    minute or two.

    Example: torchsnow sources resnet50
    """
    if markdown and (json or name is not None):
        raise typer.BadParameter("--markdown is the page of all families; it takes neither a name nor --json")
    from torchsnow.delta.survey import to_markdown

    rows = _all_rows(quiet=json) if name is None else [_usable(name)]
    if markdown:
        print(to_markdown(rows), end="")
    elif json:
        print_json([row.to_dict() for row in rows])
    else:
        columns = ["family", "model", "taps", "parameters", "multiply-adds", "if not, why"]
        print_table(columns, [_cells(row) for row in rows])
        say("parameters and multiply-adds: one delta for 10 classes over its source")


def _usable(name: str) -> Row:
    from torchsnow.delta.survey import survey_model
    from torchsnow.errors import SourceError

    row = survey_model(name)
    if row.reason is not None:
        raise SourceError(row.reason)
    return row


def _all_rows(quiet: bool) -> list[Row]:
    from torchsnow.delta.survey import survey_families
    from torchsnow.source.families import ATTENTIVE, CONVOLUTIONAL, OTHER

    rows: list[Row] = []
    with counting("deriving deltas", quiet) as progress:
        for row in survey_families():
            rows.append(row)
            progress(len(rows), len(CONVOLUTIONAL) + len(ATTENTIVE) + len(OTHER))
    return rows


def _cells(row: Row) -> list[str]:
    taps = "-" if row.num_taps is None else str(row.num_taps)
    return [row.family, row.model, taps, percent(row.params_share), percent(row.multiply_adds_share), row.reason or ""]
