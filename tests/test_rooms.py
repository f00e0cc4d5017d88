"""A file imports only from its own room and the rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torchsnow

PACKAGE = Path(torchsnow.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the lowest room to the highest. "__init__" is the package's own, which only offers what the rooms contain.
ORDER = [
    *("errors", "io", "cluster", "source", "pooling", "delta", "model", "engines", "task_file", "hub", "export"),
    *("data", "train", "methods", "pages", "plots", "workflows", "heat", "sharing", "classifier", "review"),
    *("serving", "explain", "report", "experiments"),
    *("__init__", "cli", "__main__"),
]
# Reading pictures needs to know how a source wants them, and nothing else of the network's side.
ONLY = {"data": {"errors", "io", "source.config"}}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> set[str]:
    """Dotted names below the package that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            is_package = node.module == "torchsnow"
            names.update(inner if is_package else [str(node.module)])
    ours = (name for name in names if name.split(".")[0] == "torchsnow")
    return {name.partition(".")[2] or "__init__" for name in ours}


def forbidden(room: str, name: str) -> bool:
    """Whether files of `room` may not import the module `name`."""
    other = name.split(".")[0]
    other = other if other in ORDER else "__init__"  # `from torchsnow import SnowModel` names no room
    if other == room:
        return False
    if room in ONLY:
        return not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ONLY[room])
    return ORDER.index(other) > ORDER.index(room)


def test_there_are_files_to_look_at() -> None:
    assert {"errors", "source", "delta"} <= {room_of(file) for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    room = room_of(file)
    assert room in ORDER, f"the room {room!r} has no place in the order"
    upwards = sorted(name for name in imported(ast.parse(file.read_text())) if forbidden(room, name))
    assert upwards == []


@pytest.mark.parametrize(
    ("room", "line", "allowed"),
    [
        ("delta", "from torchsnow.source.taps import Tap", True),
        ("source", "from torchsnow.source.graph import VALUE", True),
        ("source", "from torchsnow.delta import Delta", False),
        ("source", "import torchsnow.delta.spec as spec", False),
        ("hub", "from torchsnow import task_file", True),
        ("hub", "from torchsnow import SnowModel", False),
        ("hub", "def late():\n    from torchsnow.train.fit import fit", False),
        ("data", "from torchsnow.source.config import InputConfig", True),
        ("data", "from torchsnow.source import load_source", False),
        ("data", "from torchsnow.model import SnowModel", False),
        ("plots", "import torch, torchsnow.train", True),
        ("train", "from torchsnow.plots import curves", False),
        ("cli", "import torchsnow", True),
    ],
)
def test_the_rule_itself(room: str, line: str, allowed: bool) -> None:
    upwards = [name for name in imported(ast.parse(line)) if forbidden(room, name)]
    assert (upwards == []) == allowed


def test_relative_imports_are_found() -> None:
    with pytest.raises(AssertionError, match="line 1: a relative import"):
        imported(ast.parse("from ..delta import Delta"))
