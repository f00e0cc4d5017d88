"""`torchsnow push`: the tasks of a hub for other people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.output import print_json, say

Repository = Annotated[str, typer.Argument(help="Repository of the Hugging Face Hub, as ORGANISATION/NAME.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Name of a task; may be repeated. By default all.")]


def push(
    repository: Repository,
    hub: Annotated[Path, typer.Option(help="Folder of the hub.")],
    task: Tasks = None,
    licence: Annotated[
        str | None, typer.Option("--license", "--licence", help="For the model card, as in 'apache-2.0' or 'mit'.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: for its owner only.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Change or drop tasks that the repository has.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Push tasks of a hub to the Hugging Face Hub, with a model card.

    The repository holds what was pushed last, in one commit; it is made if
    there is none. Log in first: `hf auth login`, or set HF_TOKEN.

    Example: torchsnow push me/screws --hub my-hub --task screws
    """
    from torchsnow.hub import Hub
    from torchsnow.sharing import push as push_tasks

    pushed = push_tasks(Hub.open(hub), repository, task or (), licence=licence, private=private, replace=replace)
    if json:
        print_json({"repository": repository, "url": pushed.url, "tasks": list(pushed.tasks)})
    else:
        say(f"pushed {', '.join(pushed.tasks)}: {pushed.url}")
