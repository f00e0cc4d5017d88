from __future__ import annotations

import errno
import os
import resource
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from command_line import refused, torchsnow
from typer.main import get_command

from torchsnow.cli import app
from torchsnow.cli.output import counting, note, print_table, say
from torchsnow.train.progress import TrainingBar

VERBS = [
    "",
    "train",
    "train-many",
    "tune",
    "evaluate",
    "predict",
    "review",
    "relabel",
    "suggest",
    "serve",
    "compare",
    "bench",
    "visualize",
    "export",
    "push",
    "pull",
    "sources",
    "demo",
    "hub",
    "hub list",
    "hub show",
]
VERBS += ["hub remove", "hub rollback", "hub gc", "hub verify"]
SCRIPT = Path(sys.executable).parent / "torchsnow"


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_small_terminal_and_shows_an_example_that_is_right(verb: str) -> None:
    outcome = torchsnow(*verb.split(), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    (example,) = [line.strip() for line in lines if line.strip().startswith("Example:")]
    program, *words = shlex.split(example.removeprefix("Example:"))
    assert program == "torchsnow"
    assert words[: len(verb.split())] == verb.split()
    command = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    with command.make_context("torchsnow", words):  # parses the words, and runs nothing
        pass


@pytest.mark.parametrize(
    "words",
    [
        ["nosuch"],
        ["train"],
        ["train", "photos", "--task", "a", "--hub", "hub", "--epochs", "many"],
        ["train", "photos", "--task", "a", "--hub", "hub", "--nosuch"],
        ["tune"],
        ["tune", "photos", "--trials", "0"],
        ["evaluate", "photos", "--hub", "hub"],
        ["predict", "--hub", "hub"],
        ["review", "photos", "--hub", "hub"],
        ["relabel", "photos"],
        ["relabel", "photos", "--moves", "moves.csv", "--undo", "moves.undo-1.json"],
        ["suggest", "photos", "--hub", "hub", "--count", "0"],
        ["compare", "photos", "--seeds", "few"],
        ["compare", "photos", "--seeds", "99999999999999"],
        ["visualize", "--hub", "hub", "--task", "a"],
        ["export", "--hub", "hub", "--out", "hub.onnx", "--int8"],
        ["push", "me/hub"],
        ["pull", "me/hub"],
        ["hub", "nosuch"],
        ["hub", "show", "--hub", "hub"],
        ["sources", "resnet18", "--markdown"],
        ["sources", "--markdown", "--json"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_a_wrong_usage_exits_with_2(words: list[str]) -> None:
    outcome = torchsnow(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: torchsnow")
    assert "Error: " in outcome.err


@pytest.mark.parametrize("words", [[], ["hub"]], ids=["torchsnow", "torchsnow hub"])
def test_no_verb_shows_the_help(words: list[str]) -> None:
    outcome = torchsnow(*words)
    assert outcome.code == 2
    assert "Commands:" in outcome.out + outcome.err


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("torchsnow.hub.Hub.open", broken)
    with pytest.raises(ZeroDivisionError):
        torchsnow("hub", "list", "--hub", tmp_path)


def test_a_stop_outside_training_is_one_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchsnow.hub.Hub.open", stopped)
    outcome = torchsnow("hub", "list", "--hub", tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "torchsnow: interrupted\n")


def test_names_are_shown_as_they_are_but_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[red]name[/red]", "size"], [["[b]:smile:\\", "x" * 300], ["\x1b[2J\udcff\nend", 2]])
    say("[bold]a\x07b")
    note("c\udc80d")
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split() == ["[red]name[/red]", "size"]
    assert "[b]:smile:\\ " in shown.out
    assert "x" * 300 in shown.out  # not folded: this is no terminal
    assert "\\x1b[2J\\udcff\\nend " in shown.out
    assert shown.out.endswith("[bold]a\\x07b\n")
    assert shown.err == "c\\udc80d\n"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, torchsnow, torchsnow.cli.app; print(sorted({'torch', 'timm', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_help_takes_less_than_a_second_of_a_processor() -> None:
    assert SCRIPT.exists(), "install the package: pip install -e ."

    def spent_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before_s = spent_s()
    result = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "Commands:" in result.stdout
    assert spent_s() - before_s < 1


def test_the_installed_command_refuses_in_one_sentence(tmp_path: Path) -> None:
    result = subprocess.run(
        [SCRIPT, "hub", "list", "--hub", tmp_path / "none", "--json"], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("torchsnow: ")
    assert "none is not a hub" in result.stderr
    assert result.stderr.count("\n") == 1


def test_typer_knows_every_verb() -> None:
    assert isinstance(app, typer.Typer)
    names = [*get_command(app).commands]  # type: ignore[attr-defined]
    assert set(names) == {verb.split()[0] for verb in VERBS if verb}


def test_what_the_machine_lacks_and_files_that_are_too_deep_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, words in (
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOSPC, "no"), "no space left on device"),
        (RecursionError(), "nested too deeply"),
    ):

        def fail(*given: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("torchsnow.hub.Hub.open", fail)
        assert words in refused("hub", "list", "--hub", "x")


def test_forced_colours_make_no_terminal_of_a_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with counting("checking images", quiet=False) as progress:
        progress(1, 2)
    with TrainingBar(2, 10, quiet=False) as bar:
        bar.start_epoch(1)
        bar.advance(10)
        bar.say("a line")
    assert capsys.readouterr().err == "a line\n"


def test_a_bar_shows_no_time_that_nobody_can_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with counting("checking images", quiet=False) as progress:
        progress(0, 2)
    with TrainingBar(2, 10, quiet=False) as bar:
        bar.prepare()
        bar.store()
        bar.stored(0, 40)
    shown = capsys.readouterr().err
    assert "checking images" in shown
    assert "storing features" in shown
    assert "--:--" not in shown


def test_letters_that_an_encoding_lacks_are_escaped() -> None:
    words = [sys.executable, "-m", "torchsnow", "sources", "猫"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == 2
    assert "timm has no model '\\u732b'" in ended.stderr


def test_what_is_odd_about_notes_in_pictures_is_not_shown() -> None:
    refused("sources", "nosuchmodel")
    warnings.warn_explicit("corrupt EXIF data", UserWarning, "file.py", 1, module="PIL.TiffImagePlugin")
    with pytest.raises(UserWarning):
        warnings.warn_explicit("corrupt data", UserWarning, "file.py", 1, module="elsewhere")
