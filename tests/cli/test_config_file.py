from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import refused

from torchsnow.cli import app
from torchsnow.errors import ServingError


def parsed(*words: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(app)
    given: dict[str, Any] = command.commands["serve"].make_context("serve", list(words), **settings(command)).params
    return given


def settings(command: Any) -> dict[str, Any]:
    found: dict[str, Any] = command.commands["serve"].context_settings
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "hub: /a/hub\nbatch-size: 8\ndeadline_s: 2.5\nallow-host: [one, two]\nproxy: 10.0.0.1\ntoken-file:\n"
    )
    return path


def test_options_come_from_a_file(file: Path) -> None:
    given = parsed("--config", str(file))
    assert (given["hub"], given["batch_size"], given["deadline_s"]) == (Path("/a/hub"), 8, 2.5)
    assert (given["allow_host"], given["proxy"], given["token_file"]) == (["one", "two"], ["10.0.0.1"], None)
    assert given["port"] == 8000


def test_the_environment_comes_before_the_file_and_the_command_line_before_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHSNOW_SERVE_CONFIG", str(file))
    monkeypatch.setenv("TORCHSNOW_SERVE_BATCH_SIZE", "4")
    monkeypatch.setenv("TORCHSNOW_SERVE_ALLOW_HOST", "three four")
    monkeypatch.setenv("TORCHSNOW_SERVE_PORT", "9000")
    given = parsed("--port", "9001")
    assert (given["batch_size"], given["port"], given["allow_host"]) == (4, 9001, ["three", "four"])
    assert given["hub"] == Path("/a/hub")


def test_every_option_can_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    command: Any = typer.main.get_command(app)
    for param in command.commands["serve"].params:
        if param.name not in ("config", "help"):
            monkeypatch.setenv(f"TORCHSNOW_SERVE_{param.name.upper()}", "1")
    given = parsed()
    assert {str(value) for name, value in given.items() if name != "config"} <= {"1", "1.0", "['1']", "True"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 8", "'batchsize', which is no option"),
        ("config: x", "'config', which is no option"),
        ("- 1", "holds no options"),
        ("hub: {a: 1}", "expected one value"),
        ("port: [1]", "expected one value"),
        ("allow-host: [[1]]", "expected one value"),
        ("hub: [", "is not a YAML file"),
    ],
)
def test_what_is_no_configuration_is_refused(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ServingError, match=r"configuration|expected|YAML"):
        parsed("--config", str(file))
    assert words in refused("serve", "--config", file)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot read the configuration" in refused("serve", "--config", tmp_path / "none.yaml")
