"""Cells of tables that people open with a spreadsheet."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def plain_cell(value: Any) -> Any:
    """A value for a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe in front.

    Texts come from names of folders, classes and files, which others may have chosen. Numbers stay as they are.
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(_FORMULA) else value


def given_cell(text: str) -> str:
    """The text of which `plain_cell` made this one."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row by column, every value as `plain_cell` makes it."""
    return {name: plain_cell(value) for name, value in row.items()}
