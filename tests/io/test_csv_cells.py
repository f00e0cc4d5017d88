from __future__ import annotations

import csv
import io

import pytest

from torchsnow.experiments.lifelong import matrix_csv
from torchsnow.io.csv_cells import given_cell, plain_cell, plain_row


@pytest.mark.parametrize("text", ["=1+1", "+1", "-cmd", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert plain_cell(text) == f"'{text}"
    assert plain_row({"name": text, "loss": -0.5}) == {"name": f"'{text}", "loss": -0.5}


@pytest.mark.parametrize("value", ["a=b", "", "10-20", -1, -0.5, None, "'a"])
def test_all_else_stays(value: object) -> None:
    assert plain_cell(value) == value


def test_names_in_tables_are_no_formulas() -> None:
    rows = list(csv.reader(io.StringIO(matrix_csv([{"name": "=a"}, {"name": "b"}], [[-0.5], [0.1, 0.2]]))))
    assert rows == [["after", "'=a", "b"], ["'=a", "-0.5", ""], ["b", "0.1", "0.2"]]


@pytest.mark.parametrize("text", ["=1", "'=1", "''-1", "'a", "'", "", "a", "-"])
def test_what_was_given_can_be_read_again(text: str) -> None:
    assert given_cell(plain_cell(text)) == text
    assert not plain_cell(text).startswith(("=", "-"))
