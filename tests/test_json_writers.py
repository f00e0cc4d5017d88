"""What is written as JSON is JSON: no other reader takes NaN or infinite numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torchsnow

PACKAGE = Path(torchsnow.__file__).parent
# What a report is made of is checked number by number, and refused in better words.
FILES = sorted(file for file in PACKAGE.rglob("*.py") if "report" not in file.relative_to(PACKAGE).parts)


def writers(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in ("json.dump", "json.dumps")]


def is_strict(call: ast.Call) -> bool:
    return any(word.arg == "allow_nan" and ast.unparse(word.value) == "False" for word in call.keywords)


def test_there_are_writers_to_look_at() -> None:
    assert sum(len(writers(ast.parse(file.read_text()))) for file in FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_writer_refuses_what_is_no_number(file: Path) -> None:
    loose = [ast.unparse(call) for call in writers(ast.parse(file.read_text())) if not is_strict(call)]
    assert loose == []
