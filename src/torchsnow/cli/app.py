"""All verbs together, and what happens to errors."""

from __future__ import annotations

import io
import sys
import warnings
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from torchsnow import __version__
from torchsnow.cli import (
    bench,
    compare,
    demo,
    evaluate,
    export,
    hub,
    predict,
    pull,
    push,
    relabel,
    review,
    serve,
    sources,
    suggest,
    train,
    train_many,
    tune,
    visualize,
)
from torchsnow.cli.output import note, say
from torchsnow.errors import TorchsnowError
from torchsnow.io.shortage import shortage
from torchsnow.train.ranks import here, together


class _Verbs(TyperGroup):
    """Bad input is one sentence on stderr and exit code 2, never a traceback; a stop by Ctrl-C is exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TorchsnowError as error:
            _tell_end(str(error))
            raise typer.Exit(2) from error
        except (MemoryError, OSError, RuntimeError) as error:
            if (reason := _fault_of_machine(error)) is None:
                raise
            _tell_end(reason)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            _tell_end(str(stop) or "interrupted")
            raise typer.Exit(130) from stop


def _tell_end(why: str) -> None:
    if here().must_speak():
        note(f"torchsnow: {why}")


class _Verb(TyperCommand):
    """An option that is given has a value: `--out "$RUNS"` with a variable that is not set would be the folder here.

    But for `train`, a verb is one process.
    """

    def invoke(self, ctx: Any) -> Any:
        if here().count > 1 and self.name != "train":
            raise TorchsnowError(
                f"torchrun has started {here().count} processes, and {self.name} runs in one: start it without torchrun"
            )
        return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {word for one in self.params if not getattr(one, "is_flag", True) for word in one.opts}
        for before, word in pairwise(("", *args)):
            name = before if not word else word.removesuffix("=") if word.endswith("=") else ""
            if name in options:
                raise TorchsnowError(f"{name} is empty (of a shell variable that is not set?): give it a value")
        return super().parse_args(ctx, args)


def _fault_of_machine(error: Exception) -> str | None:
    if isinstance(error, RecursionError):
        return "a file that was given is nested too deeply to be read"
    lacking = shortage(error)
    return None if lacking is None else f"this machine cannot do that now: {lacking}"


def _show_version(asked: bool) -> None:
    if asked:
        say(f"torchsnow {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Verbs,
    help="Many small image-classification tasks on one frozen network, by channel pooling (SNOW).",
    epilog="Example: torchsnow train photos/ --task screws --hub my-hub",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("train-many")(train_many.train_many)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("review")(review.review)
app.command("relabel")(relabel.relabel)
app.command("suggest")(suggest.suggest)
app.command("serve", context_settings={"auto_envvar_prefix": "TORCHSNOW_SERVE"})(serve.serve)
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)
app.command("visualize")(visualize.visualize)
app.command("export")(export.export)
app.command("push")(push.push)
app.command("pull")(pull.pull)
app.command("sources")(sources.sources)
app.command("demo")(demo.demo)
app.add_typer(hub.app, name="hub")
for verb in (*app.registered_commands, *hub.app.registered_commands):
    verb.cls = _Verb


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Many small image-classification tasks on one frozen network, by channel pooling (SNOW)."""


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names can hold letters that a log's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on notes in pictures that nobody reads
    with together():
        app(prog_name="torchsnow")
