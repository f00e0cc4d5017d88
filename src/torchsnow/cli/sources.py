"""`torchsnow sources`: which networks can be a source, and what a delta costs there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from torchsnow.cli.output import percent, print_json, print_table, say

if TYPE_CHECKING:
    from torchsnow.delta.survey import Row


def sources(
    name: Annotated[str | None, typer.Argument(help="A timm model; without it, one model of every family.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/sources.md.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Which networks can be a source: taps, and a delta's share of parameters and multiply-adds (K = M = 8).

    Without a name every family is tried, which takes a minute or two. Example: torchsnow sources resnet50
    """
    from torchsnow.delta.survey import survey_families, survey_model, to_markdown

    if name is not None:
        row = survey_model(name)
        if row.reason is not None:
            from torchsnow.errors import SourceError

            raise SourceError(row.reason)
        rows = [row]
    else:
        rows = list(survey_families())
    if markdown:
        print(to_markdown(rows), end="")
    elif json:
        print_json([row.to_dict() for row in rows])
    else:
        print_table(
            ["family", "model", "taps", "parameters", "multiply-adds", "if not, why"], [_cells(r) for r in rows]
        )
        say("parameters and multiply-adds: one delta for 10 classes over its source")


def _cells(row: Row) -> list[str]:
    taps = "-" if row.num_taps is None else str(row.num_taps)
    return [row.family, row.model, taps, percent(row.params_share), percent(row.multiply_adds_share), row.reason or ""]
