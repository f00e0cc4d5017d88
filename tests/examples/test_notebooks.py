from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sample_photos import make_photos

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_results(notebook: Path) -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells(notebook))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    codes = ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert len(codes) >= 4
    for code in codes:
        exec(compile(code, notebook.name, "exec"), names)
