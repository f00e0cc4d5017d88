from __future__ import annotations

import pytest

from torchsnow.io.files import given_cell, plain_cell, plain_row


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert plain_cell(text) == f"'{text}"
    assert plain_row({"name": text, "loss": -0.5}) == {"name": f"'{text}", "loss": -0.5}


@pytest.mark.parametrize("value", ["a=b", "", "10-20", -1, -0.5, None, "'a"])
def test_all_else_stays(value: object) -> None:
    assert plain_cell(value) == value


@pytest.mark.parametrize("text", ["=1", "'=1", "''-1", "'a", "'", "", "a", "-"])
def test_what_was_given_can_be_read_again(text: str) -> None:
    assert given_cell(plain_cell(text)) == text
    assert not plain_cell(text).startswith(("=", "-"))
