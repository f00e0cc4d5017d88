from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from command_line import refused, torchsnow

from torchsnow.delta import survey
from torchsnow.delta.survey import Row

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


@pytest.fixture
def _two_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of all of timm's."""

    def few() -> Iterator[Row]:
        yield Row("resnet", "resnet18", 17, 0.031, 0.032)
        yield Row("cait", "", reason="a vision transformer")

    monkeypatch.setattr(survey, "survey_families", few)


def test_one_model() -> None:
    outcome = torchsnow("sources", "resnet18", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = outcome.document
    assert (row["family"], row["model"], row["reason"]) == ("resnet", "resnet18", None)
    assert row["num_taps"] == 16
    assert 0.02 < row["params_share"] < 0.06
    assert 0.002 < row["multiply_adds_share"] < 0.04


def test_a_person_gets_a_table() -> None:
    outcome = torchsnow("sources", "test_resnet")
    assert outcome.code == 0
    head, row, legend = outcome.out.splitlines()
    assert head.split()[:3] == ["family", "model", "taps"]
    assert row.split()[:2] == ["resnet", "test_resnet"]
    assert "10 classes" in legend


def test_what_cannot_be_a_source_is_refused_with_the_reason() -> None:
    assert "cait_xxs24_224 cannot be a source: it is a vision transformer" in refused("sources", "cait_xxs24_224")
    assert "did you mean resnet" in refused("sources", "resnet81", "--json")
    assert "timm has no model 'x/../y'" in refused("sources", "x/../y")


@pytest.mark.usefixtures("_two_families")
def test_all_families() -> None:
    outcome = torchsnow("sources")
    assert (outcome.code, outcome.err) == (0, "")
    _, works, does_not, _ = outcome.out.splitlines()
    assert works.split() == ["resnet", "resnet18", "17", "3.1%", "3.2%"]
    assert does_not.split() == ["cait", "-", "-", "-", "a", "vision", "transformer"]
    assert [row["family"] for row in torchsnow("sources", "--json").document] == ["resnet", "cait"]
    page = torchsnow("sources", "--markdown").out
    assert "| resnet | resnet18 | 17 | 3.1 | 3.2 |" in page
    assert "| cait | a vision transformer |" in page


@pytest.mark.slow
def test_the_page_is_what_the_command_prints() -> None:
    if not PAGE.exists():
        pytest.skip("docs/sources.md is not written yet")
    written = re.search(r"with timm ([0-9][^;]*);", PAGE.read_text())
    assert written, "docs/sources.md does not name the version of timm"
    if written[1] != timm.__version__:
        pytest.skip(f"docs/sources.md is of timm {written[1]}, and {timm.__version__} is installed")
    outcome = torchsnow("sources", "--markdown")
    assert (outcome.code, outcome.out) == (0, PAGE.read_text())
