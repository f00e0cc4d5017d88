"""`torchsnow relabel`: moves images to other class folders, as a table says."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from torchsnow.cli.output import counting, print_json, print_table, say


def relabel(
    data: Annotated[Path, typer.Argument(help="Folder of class folders.")],
    moves: Annotated[Path | None, typer.Option(help="Table with the columns path, class and move_to.")] = None,
    undo: Annotated[Path | None, typer.Option(help="Instead: the record of moves that are to be undone.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Move files; without it, only show what would move.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, and no progress.")] = False,
) -> None:
    """Move images to the class folders that a table names, or back.

    Shows what would move; with --apply it moves. The record that is written
    next to the table undoes it with --undo.

    Example: torchsnow relabel photos/ --moves review/moves.csv --apply
    """
    from torchsnow.review import move_files, plan_moves, plan_undo, record_next_to, write_record

    if (moves is None) == (undo is None):
        raise typer.BadParameter("name either the table of moves (--moves) or a record to undo (--undo)")
    record = None
    if moves is not None:
        planned = plan_moves(data, moves)
        if apply and planned:
            record = record_next_to(moves)
            write_record(record, planned)
    else:
        assert undo is not None
        planned = plan_undo(data, undo)
    if apply:
        with counting("moving images", quiet=json) as progress:
            move_files(data, planned, progress)
    if json:
        listed = [{"from": move.old, "to": move.new} for move in planned]
        print_json({"moved": apply, "moves": listed, "record": None if record is None else str(record)})
        return
    if planned:
        print_table(["image", "to"], [[move.old, move.new] for move in planned])
    images = "1 image" if len(planned) == 1 else f"{len(planned)} images"
    if not apply:
        say(f"{images} would move; nothing was changed. With --apply they move")
    elif record is None:
        say(f"{images} moved back" if undo is not None else "no image was to be moved")
    else:
        say(f"{images} moved; to undo: torchsnow relabel {quote(str(data))} --undo {quote(str(record))} --apply")
