from __future__ import annotations

import pytest

from torchsnow.delta import survey
from torchsnow.delta.survey import Row, survey_families, survey_model, to_markdown
from torchsnow.errors import SourceError
from torchsnow.methods import PRESETS
from torchsnow.source.families import ATTENTIVE, CONVOLUTIONAL, OTHER, unlisted_families


def test_a_network_that_works() -> None:
    row = survey_model("test_resnet")
    assert row.reason is None
    assert row.family == "resnet"
    assert row.num_taps is not None
    assert row.num_taps > 4
    assert 0.01 < (row.params_share or 0) < 0.5


def test_a_network_that_does_not_says_why() -> None:
    row = survey_model("cait_xxs24_224")
    assert row.num_taps is None
    assert "transformer" in (row.reason or "")
    with pytest.raises(SourceError, match="did you mean"):
        survey_model("resnet5O")


def test_the_shares_are_those_of_the_default_preset() -> None:
    assert PRESETS["default"].spec(10) == survey._SPEC


def test_every_family_of_the_installed_timm_is_in_one_table() -> None:
    assert unlisted_families() == []
    assert not set(CONVOLUTIONAL) & set(OTHER)
    assert not set(ATTENTIVE) & {*CONVOLUTIONAL, *OTHER}


def test_the_page_counts_what_works_and_names_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "CONVOLUTIONAL", {"resnet": "test_resnet", "byobnet": "halonet26t"})
    monkeypatch.setattr(survey, "ATTENTIVE", {"vision_transformer": "test_vit"})
    page = to_markdown(list(survey_families()))
    assert "2 families, of which 1 work" in page.replace("\n", " ")
    assert "| byobnet | halonet26t | - | - | - (" in page
    assert "| vision_transformer | test_vit | 12 | " in page
    assert "| mlp_mixer | an MLP mixer |" in page


def test_rows_are_plain_json_values() -> None:
    assert Row("resnet", "resnet18").to_dict()["num_taps"] is None
