from __future__ import annotations

from pathlib import Path

import pytest

from torchsnow.data import find_images


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "a/10.jpg",
        "a/2.JPG",
        "a/note.txt",
        "a/.hidden.jpg",
        "a/deep/1.png",
        "b/1.png",
        "[b].png",
        "bare/x.txt",
    ):
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a"], ["a/2.JPG", "a/10.jpg", "a/deep/1.png"]),
        (["b/1.png", "a", "b"], ["b/1.png", "a/2.JPG", "a/10.jpg", "a/deep/1.png"]),
        (["*/*.png"], ["b/1.png"]),
        (["**/1.png"], ["a/deep/1.png", "b/1.png"]),
        (["[ab]"], ["a/2.JPG", "a/10.jpg", "a/deep/1.png", "b/1.png"]),
        (["[b].png"], ["[b].png"]),
        (["gone.jpg", "a/note.txt"], ["gone.jpg", "a/note.txt"]),
    ],
)
def test_what_words_name(words: list[str], expected: list[str]) -> None:
    bad: list[Path] = []
    assert find_images(words, lambda path, why: bad.append(path)) == [Path(name) for name in expected]
    assert bad == []


def test_what_names_nothing_is_said() -> None:
    bad: list[tuple[Path, str]] = []
    assert find_images(["bare", "x*.png", "b"], lambda *what: bad.append(what)) == [Path("b/1.png")]
    assert bad == [
        (Path("bare"), "the folder bare holds no images"),
        (Path("x*.png"), "no file fits the pattern x*.png"),
    ]
