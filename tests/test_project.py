"""What the project says of itself is true, and the same everywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import torchsnow
from torchsnow.cli import main
from torchsnow.io.files import sync_folder

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = ("3.11", "3.12", "3.13")
POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}


def test_version_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["torchsnow", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"torchsnow {torchsnow.__version__}\n"
    assert torchsnow.__version__ == PROJECT["version"]


def test_python_versions_are_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    words = [word.rpartition(" ")[2] for word in PROJECT["classifiers"] if word.startswith("Programming Language")]
    assert tuple(word for word in words if "." in word) == VERSIONS
    assert "Python 3.11, 3.12 or 3.13" in (ROOT / "README.md").read_text()
    assert (
        re.search(r"python: \[(.*)\]", (ROOT / ".github/workflows/ci.yaml").read_text())[1]
        == str(  # type: ignore[index]
            list(VERSIONS)
        )[1:-1].replace("'", '"')
    )


@pytest.mark.parametrize(("minor", "is_taken"), [(10, False), (11, True), (13, True), (14, False)])
def test_make_refuses_other_versions_in_one_sentence(minor: int, is_taken: bool, tmp_path: Path) -> None:
    python = tmp_path / "python"
    code = f"import sys; sys.version_info = (3, {minor}, 0); exec(sys.argv[2])"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    python.chmod(0o755)
    check = re.search(r"define MAKE_VENV\n(.*?)\ntest", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert check is not None
    (tmp_path / "Makefile").write_text(f"all:\n\t{check[1]}\n")
    words = ["make", "-s", "-C", str(tmp_path), f"PYTHON={python}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == is_taken, done.stderr
    assert is_taken or "torchsnow needs Python 3.11 to 3.13" in done.stderr


@pytest.mark.parametrize("module", sorted(POSIX_MODULES))
def test_only_the_server_loads_what_windows_lacks(module: str) -> None:
    package = ROOT / "src" / "torchsnow"
    for file in package.rglob("*.py"):
        if file.is_relative_to(package / "serving"):
            continue
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import)]
        assert module not in {alias.name for node in top for alias in node.names}, file


def test_folders_are_not_opened_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    sync_folder(tmp_path / "missing")


def test_the_walks_name_files_that_exist_and_each_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for title in ("A walk of one image", "A walk of one training run"):
        walk = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        files = re.findall(r"`([a-z_/]+\.py)`", walk)
        assert len(files) == len(set(files)) > 20, title
        assert [file for file in files if not (ROOT / "src" / "torchsnow" / file).exists()] == []
