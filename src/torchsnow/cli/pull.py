"""`torchsnow pull`: other people's tasks for a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.output import print_json, say
from torchsnow.cli.push import Repository, Tasks


def pull(
    repository: Repository,
    hub: Annotated[Path, typer.Option(help="Folder of the hub; made if there is none.")],
    task: Tasks = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; by default what was pushed last.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace tasks of these names in the hub.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Add tasks of a repository of the Hugging Face Hub to a hub.

    Every file is compared with its SHA-256 and tried before any is added.

    Example: torchsnow pull me/screws --hub my-hub
    """
    from torchsnow.sharing import pull as pull_tasks

    pulled = pull_tasks(repository, hub, task or (), revision=revision, replace=replace)
    if json:
        added, unchanged = list(pulled.added), list(pulled.unchanged)
        print_json({"repository": repository, "commit": pulled.commit, "added": added, "unchanged": unchanged})
        return
    if pulled.added:
        say(f"added {', '.join(pulled.added)} to {hub}, from commit {pulled.commit[:12]}")
    if pulled.unchanged:
        say(f"unchanged: {', '.join(pulled.unchanged)}")
