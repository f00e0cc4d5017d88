"""All verbs together, and what happens to errors."""

from __future__ import annotations

import sys

import typer

from torchsnow.cli import demo, evaluate, hub, predict, sources, train
from torchsnow.errors import TorchsnowError

app = typer.Typer(
    help="Many small image-classification tasks on one frozen CNN, by channel pooling (SNOW).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.add_typer(hub.app, name="hub")
app.command("sources")(sources.sources)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line; bad input is one sentence on stderr and exit code 2, never a traceback."""
    try:
        app()
    except TorchsnowError as error:
        print(f"torchsnow: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"torchsnow: {interrupt or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
