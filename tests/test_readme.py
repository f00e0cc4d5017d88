"""README.md and the docs are true: what they show runs, what they point to exists."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from test_rooms import ORDER
from torchsnow.cli import app, main
from torchsnow.data.published import list_elpv
from torchsnow.delta import DeltaSpec
from torchsnow.task_file import SourceInfo, TaskInfo

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ROOT / "docs" / "sources.md"
IMAGES_PER_CLASS = 12

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE_CODE = re.compile(r"`([^`\n]+)`")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def shell_lines(page: Path) -> list[str]:
    """The commands of the shell blocks, one a line."""
    joined = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    return INLINE_CODE.findall(prose(page))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what README.md supposes: photos/ with one folder per class, and photo.jpg."""
    paths: dict[str, list[Path]] = {"good": [], "bent": []}
    for entry in list_elpv(binary=True).entries:
        paths["good" if entry.class_name == "functional" else "bent"].append(entry.path)
    for name, files in paths.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, file in enumerate(files[:IMAGES_PER_CLASS]):
            Image.open(file).save(tmp_path / "photos" / name / f"{number}.jpg")
    Image.open(paths["good"][IMAGES_PER_CLASS]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of one command, run as the installed program runs it."""
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0  # type: ignore[return-value]


def test_readme_has_something_to_run() -> None:
    assert len(blocks(README, "python")) == 1
    assert {"make demo", "make test"} <= set(shell_lines(README))
    assert {line.split()[1] for line in shell_lines(README) if line.startswith("torchsnow")} >= {"train", "predict"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extending.md"], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
    if page == README:
        assert re.fullmatch(r"\{'bent': \d\.[\de.-]+, 'good': \d\.[\de.-]+\}\n", capsys.readouterr().out)


def test_commands_of_the_readme_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in shell_lines(README):
        if not line.startswith("make "):
            assert run(line, monkeypatch) == 0, line
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert "photo.jpg" in out
    assert_documented({path.name for path in (workplace / "runs" / "screws").iterdir()}, "files.md", "own-images.md")
    hub = {path.name for path in (workplace / "my-hub").rglob("*") if path.is_file()}
    assert_documented({name for name in hub if len(name) < 64}, "files.md")
    assert_documented(set(json.loads((workplace / "my-hub" / "index.json").read_text())), "files.md")


def assert_documented(names: set[str], *pages: str) -> None:
    """Every name occurs in every page."""
    for page in pages:
        text = (ROOT / "docs" / page).read_text()
        assert [name for name in sorted(names) if name not in text] == [], page


@pytest.mark.parametrize("kind", [TaskInfo, SourceInfo, DeltaSpec])
def test_keys_of_a_task_file_are_documented(kind: Any) -> None:
    assert {field.name for field in fields(kind)} - set(inline_code(ROOT / "docs" / "files.md")) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shown = [line for line in [*shell_lines(page), *inline_code(page)] if line.startswith("make ")]
    assert [line for line in shown if line.split()[1] not in targets] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target == GENERATED and not target.exists():
            continue
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def verb(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words after `torchsnow` name, and the words left for it."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options(command: Any) -> set[str]:
    """The options of a command and of those below it."""
    own = {option for param in command.params for option in param.opts} | {"--help"}
    return own.union(*(options(below) for below in getattr(command, "commands", {}).values()))


def shown_commands(page: Path) -> Iterator[list[str]]:
    """The words after `torchsnow` of every command in code, without those that stand for any verb."""
    for line in [*shell_lines(page), *inline_code(page)]:
        if line.startswith("torchsnow ") and not line.startswith("torchsnow VERB"):
            yield shlex.split(line)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_exist(page: Path) -> None:
    for words in shown_commands(page):
        command, rest = verb(words)
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options(command), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_are_complete(page: Path) -> None:
    """What stands in a shell block has all that its verb requires."""
    for line in shell_lines(page):
        if line.startswith("torchsnow "):
            command, rest = verb(shlex.split(line)[1:])
            command.make_context(line, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_alone_exist(page: Path) -> None:
    known = options(typer.main.get_command(app))
    alone = {code.split()[0] for code in inline_code(page) if code.startswith("--")}
    assert alone - known == set()


def test_the_map_of_rooms_is_the_order_of_the_rooms() -> None:
    rooms = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert rooms == [room for room in ORDER if not room.startswith("__")]


@pytest.mark.parametrize(
    ("line", "known"),
    [("hub list --hub x", True), ("train x --epochs 3", True), ("train x --epoch 3", False), ("hub list --json", True)],
)
def test_the_option_rule_itself(line: str, known: bool) -> None:
    command, rest = verb(line.split())
    assert ({word for word in rest if word.startswith("--")} <= options(command)) == known


def test_an_unknown_verb_is_found() -> None:
    with pytest.raises(AssertionError, match="there is no verb 'fly'"):
        verb(["fly"])
