"""`torchsnow push`: the tasks of a hub for other people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchsnow.cli.output import print_json, say

Repository = Annotated[str, typer.Argument(help="Repository of the Hugging Face Hub, as ORGANISATION/NAME.")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Name of a task; may be repeated. By default all.")]


def push(
    repository: Annotated[
        str, typer.Argument(help="ORGANISATION/NAME on the Hugging Face Hub, or an address as s3://bucket/hub.")
    ],
    hub: Annotated[Path, typer.Option(help="Folder of the hub.")],
    task: Tasks = None,
    licence: Annotated[
        str | None, typer.Option("--license", "--licence", help="For the model card, as in 'apache-2.0' or 'mit'.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: for its owner only.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Change or drop tasks that the repository has.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Push tasks of a hub to the Hugging Face Hub, with a model card, or to an object store.

    The place holds what was pushed last, and is made if there is none. If
    somebody else pushes at the same time, one of both is refused. For the
    Hugging Face Hub, log in first: `hf auth login`, or set HF_TOKEN.

    Example: torchsnow push me/screws --hub my-hub --task screws
    """
    from torchsnow.errors import HubError
    from torchsnow.hub import Hub
    from torchsnow.hub.remote import url_of
    from torchsnow.sharing import push as push_tasks
    from torchsnow.sharing import push_to_store

    url = url_of(repository)
    if url is not None and (licence is not None or private):
        raise HubError("--license and --private are for the Hugging Face Hub; an object store has rights of its own")
    if url is not None and url.startswith("memory:"):
        raise HubError(f"{url} is in the memory of this command, and ends with it; name a place that stays")
    opened, names = Hub.open(hub), task or ()
    if url is not None:
        pushed = push_to_store(opened, url, names, replace=replace)
    else:
        pushed = push_tasks(opened, repository, names, licence=licence, private=private, replace=replace)
    if json:
        print_json({"repository": repository, "url": pushed.url, "tasks": list(pushed.tasks)})
    else:
        say(f"pushed {', '.join(pushed.tasks)}: {pushed.url}")
