from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from command_line import Trained, refused, torchsnow
from PIL import Image


@pytest.fixture
def flawed(pristine: Trained, tmp_path: Path) -> Path:
    """A copy with one wrong label, and one image twice, as another file."""
    flawed = Path(shutil.copytree(pristine.photos, tmp_path / "photos"))
    (flawed / "red" / "7.png").rename(flawed / "blue" / "wrong.png")
    Image.open(flawed / "green" / "3.png").save(flawed / "green" / "again.bmp")
    return flawed


@pytest.fixture
def reviewed(pristine: Trained, flawed: Path, tmp_path: Path) -> Path:
    words = ("review", flawed, "--hub", pristine.hub, "--task", "colours", "--out", tmp_path / "review")
    outcome = torchsnow(*words)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"then: torchsnow relabel {flawed} --moves {tmp_path / 'review' / 'moves.csv'}" in outcome.out
    return tmp_path / "review"


def rows_of(reviewed: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((reviewed / "moves.csv").read_text())))


def test_a_review_finds_a_wrong_label_and_a_copy(pristine: Trained, flawed: Path, reviewed: Path) -> None:
    rows = rows_of(reviewed)
    moving = {row["path"]: row["move_to"] for row in rows if row["move_to"]}
    assert moving["blue/wrong.png"] == "red"
    assert any(row["reason"].startswith("near-duplicates") for row in rows if row["path"] == "green/again.bmp")
    words = ("review", flawed, "--hub", pristine.hub, "--task", "colours", "--out", reviewed, "--json")
    document = torchsnow(*words).document
    assert document["images"] == 31
    assert {one["path"]: one["likelier"] for one in document["mislabelled"]} == moving
    groups = [[one["path"] for one in group] for group in document["duplicates"]]
    assert ["green/3.png", "green/again.bmp"] in groups
    assert len(groups) < 4  # a network without training finds some noise alike
    assert document["rare"] == []


def test_the_page_is_one_file_with_all_sections(reviewed: Path) -> None:
    page = (reviewed / "review.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    for title in ("Likely mislabelled", "Confidently wrong", "Most doubtful", "Near-duplicates", "Images by class"):
        assert title in page
    assert "Most doubtful: 7" in page  # of 31
    assert page.count("data:image/jpeg") >= 7 * 2
    assert "blue/wrong.png" in page


def test_duplicates_across_splits_are_said(pristine: Trained, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(pristine.photos, tmp_path / "split" / split)
    for file in (tmp_path / "split" / "test").rglob("[1-9].png"):
        file.unlink()
    words = ("review", tmp_path / "split", "--hub", pristine.hub, "--task", "colours", "--out", tmp_path / "review")
    document = torchsnow(*words, "--json").document
    splits = [sorted(one["split"] for one in group) for group in document["duplicates"]]
    assert splits[:3] == [["test", "train"]] * 3
    assert all(set(of_group) == {"train"} for of_group in splits[3:])
    assert "In several splits: 3." in (tmp_path / "review" / "review.html").read_text()
    assert "near-duplicates, group 1, across splits" in {row["reason"] for row in rows_of(tmp_path / "review")}


def test_splits_of_a_run(pristine: Trained, tmp_path: Path) -> None:
    words = ("review", pristine.photos, "--hub", pristine.hub, "--task", "colours", "--out", tmp_path / "review")
    assert torchsnow(*words, "--splits", pristine.run / "splits.json").code == 0
    page = (tmp_path / "review" / "review.html").read_text()
    assert '<th scope="col">train</th><th scope="col">val</th><th scope="col">test</th>' in page
    assert re.search("split (train|val|test)<", page)


def test_relabelling_is_shown_then_done_then_undone(flawed: Path, reviewed: Path) -> None:
    before = {path.relative_to(flawed): path.read_bytes() for path in flawed.rglob("*.*")}
    moves = reviewed / "moves.csv"
    only = [row for row in csv.reader(moves.read_text().splitlines()) if row[0] in ("path", "blue/wrong.png")]
    with (reviewed / "one.csv").open("w", newline="") as file:
        csv.writer(file).writerows(only)
    assert "1 image would move" in torchsnow("relabel", flawed, "--moves", reviewed / "one.csv").out
    shown = torchsnow("relabel", flawed, "--moves", moves)
    assert shown.code == 0
    assert "nothing was changed" in shown.out
    assert {path.relative_to(flawed): path.read_bytes() for path in flawed.rglob("*.*")} == before
    assert not list(reviewed.glob("*.json"))

    done = torchsnow("relabel", flawed, "--moves", moves, "--apply", "--json").document
    assert {"from": "blue/wrong.png", "to": "red/wrong.png"} in done["moves"]
    assert (flawed / "red" / "wrong.png").is_file()
    assert "was it moved already?" in refused("relabel", flawed, "--moves", moves)

    record = done["record"]
    assert "would move" in torchsnow("relabel", flawed, "--undo", record).out
    assert "moved back" in torchsnow("relabel", flawed, "--undo", record, "--apply").out
    assert {path.relative_to(flawed): path.read_bytes() for path in flawed.rglob("*.*")} == before


def test_what_cannot_be_reviewed(pristine: Trained, flawed: Path, tmp_path: Path) -> None:
    words = ("review", flawed, "--hub", pristine.hub)
    assert "did you mean colours?" in refused(*words, "--task", "colour")
    (flawed / "red").rename(flawed / "violet")
    assert "'violet', which task 'colours' does not know" in refused(*words, "--task", "colours")
    (tmp_path / "file").touch()
    assert "lies inside the data" in refused(*words, "--task", "colours", "--out", flawed / "review")
    assert not (flawed / "review").exists()
    assert "cannot make the folder" in refused(*words, "--task", "colours", "--out", tmp_path / "file" / "review")


def test_suggestions_for_all_tasks(pristine: Trained, flawed: Path, tmp_path: Path) -> None:
    words = ("suggest", flawed, "--hub", pristine.hub, "--count", "3")
    document = torchsnow(*words, "--json").document
    assert [one["task"] for one in document["suggestions"]] == ["colours"] * 3
    table = torchsnow(*words).out.splitlines()
    assert table[0].split() == ["task", "image", "class", "probability", "doubt"]
    assert len(table) == 4
    assert torchsnow(*words, "--csv", tmp_path / "next.csv").out == f"3 suggestions are in {tmp_path / 'next.csv'}\n"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "next.csv").read_text())))
    assert [row["image"] for row in rows] == [one["image"] for one in document["suggestions"]]


def test_suggestions_name_what_cannot_be_read(pristine: Trained, flawed: Path) -> None:
    outcome = torchsnow("suggest", flawed / "red", "gone.png", "--hub", pristine.hub)
    assert outcome.code == 2
    assert "gone.png" in outcome.err
    assert "did you mean colours?" in refused("suggest", flawed, "--hub", pristine.hub, "--task", "colour")
