"""Runs the command line in this process."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torchsnow.cli import main

SIZES = ("--source", "test_resnet", "--weights", "random", "--image-size", "32", "--batch-size", "8")
TINY = (*SIZES, "--lr", "0.005")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Trained:
    """`photos` on which the task "colours" of `hub` was trained for two epochs, in `run`; what train printed."""

    photos: Path
    hub: Path
    run: Path
    printed: dict[str, Any]


def torchsnow(*words: str | Path) -> Outcome:
    """Run `torchsnow WORDS`; an exception that escapes, which a shell would show as a traceback, is raised."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with patch.object(sys, "argv", ["torchsnow", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Outcome(code or 0, out.getvalue(), err.getvalue())


def refused(*words: str | Path) -> str:
    """Run a command that must be refused, and return its one sentence."""
    outcome = torchsnow(*words)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("torchsnow: ")
    assert "Traceback" not in outcome.err
    assert len(sentence) < 600
    return sentence.removeprefix("torchsnow: ")


def snapshot(*folders: Path) -> dict[Path, bytes]:
    """Every file below the folders, with its content."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
