"""What docs/extending.md adds works where the page says that it goes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from torchsnow.cli import app, main
from torchsnow.data import catalogue, loading
from torchsnow.engines import BACKENDS
from torchsnow.hub import Hub
from torchsnow.methods import METHODS, make_method
from torchsnow.source import families, load_source

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def added() -> Iterator[dict[str, Any]]:
    """The names that the blocks of the page define."""
    commands = list(app.registered_commands)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    yield names
    app.registered_commands[:] = commands


def test_files_that_the_page_names_exist() -> None:
    new = {"src/torchsnow/methods/last_conv.py", "src/torchsnow/cli/largest.py"}
    files = set(re.findall(r"`((?:src|tests)/[^`]*)`", PAGE))
    assert new < files
    assert [file for file in files - new if not (Path(__file__).parent.parent / file).exists()] == []


def test_method(added: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "last_conv", added["METHOD"]["last_conv"])  # type: ignore[arg-type]
    method = make_method("last_conv", load_source("test_resnet", "random"), 3)
    assert method.model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert len([p for group in method.parameter_groups(1e-3, 0.0) for p in group["params"]]) == 3  # and the last layer


def test_engine(added: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "exported", added["BACKEND"]["exported"])  # type: ignore[arg-type]

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean((2, 3)), 2 * x

    images = torch.randn(2, 3, 8, 8)
    means, twice = BACKENDS["exported"](Two(), images)(images)
    assert torch.equal(twice, 2 * images)
    torch.testing.assert_close(means, images.mean((2, 3)))


def test_data_set(added: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHSNOW_DATA", str(tmp_path))
    table = MappingProxyType(added["DATASET"])
    monkeypatch.setattr(catalogue, "DATASETS", table)
    monkeypatch.setattr(loading, "DATASETS", table)
    data = loading.load_data("greys")
    assert data.classes == ("dark", "light")
    assert len(data.examples) == 254


def test_verb(
    added: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hub = Hub.create(tmp_path / "hub", load_source("test_resnet", "random"))
    monkeypatch.setattr(sys, "argv", ["torchsnow", "largest", "--hub", str(hub.folder.path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out == "no task\n"


def test_family(added: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ((family, model),) = added["FAMILY"].items()
    monkeypatch.delitem(families.OTHER, family)
    assert len(load_source(model, "random").taps) > 10
