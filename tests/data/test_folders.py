"""Folders as people make them: words for splits, names that look alike, what systems leave among images."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import Folder
from torchsnow.data import LoadedData, find_images, load_data, load_task_table, make_splits
from torchsnow.data.checking import advice_on_greys
from torchsnow.data.listing import Skipped
from torchsnow.data.names import is_junk, likeness, splits_named
from torchsnow.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def sizes(data: LoadedData) -> dict[str, int]:
    return {name: len(examples) for name, examples in data.splits.items()}


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("TRAIN", "TEST", "test"),
        ("train", "dev", "val"),
        ("train", "development", "val"),
        ("seg_train", "seg_test", "test"),
        ("train_set", "test_set", "test"),
        ("trainset", "valset", "val"),
        ("TrainSet", "TestSet", "test"),
        ("Training Set", "Validation Set", "val"),
        ("train_images", "val_images", "val"),
        ("train2017", "val2017", "val"),
        ("01_train", "02_test", "test"),
        ("images-train", "images-holdout", "test"),
        ("train", "hold_out", "test"),
        ("train", "eval", "val"),
        ("flowers_train", "flowers_valid", "val"),
        ("training_data", "testing_data", "test"),
        ("trainval", "test", "test"),
        ("train_val", "test_set", "test"),
        ("tr", "te", "test"),
    ],
)
def test_words_for_splits(image_folder: Folder, train: str, other: str, split: str) -> None:
    data = load_data(image_folder({f"{train}/a": 3, f"{train}/b": 3, f"{other}/a": 2}))
    assert sizes(data) == {"train": 6, split: 2}
    assert data.classes == ("a", "b")


def test_a_word_for_either_is_what_the_others_are_not() -> None:
    assert splits_named(["train", "dev", "eval"]) == {"train": "train", "dev": "val", "eval": "test"}
    assert splits_named(["train", "test", "holdout"]) == {"train": "train", "test": "test", "holdout": "val"}
    assert splits_named(["train", "validation", "test"]) == {"train": "train", "validation": "val", "test": "test"}


@pytest.mark.parametrize(
    "names",
    [["steam train", "bus"], ["test tube", "flask"], ["training shoe", "boot"], ["steam train", "diesel train"], ["a"]],
)
def test_classes_are_no_splits(names: list[str]) -> None:
    assert splits_named(names) == {}


def test_classes_of_people_who_train_and_test(image_folder: Folder) -> None:
    assert load_data(image_folder({"training": 3, "testing": 3, "coding": 3})).classes == (
        "coding",
        "testing",
        "training",
    )


@pytest.mark.parametrize("names", [("learn", "check"), ("A", "B"), ("set1", "set2")])
def test_splits_by_unknown_words_are_a_question(image_folder: Folder, names: tuple[str, str]) -> None:
    root = image_folder({f"{names[0]}/cat": 2, f"{names[0]}/dog": 2, f"{names[1]}/cat": 2})
    with pytest.raises(DataError, match=r"each of the folders .* holds the folders cat: the classes must be the inner"):
        load_data(root)


def test_a_folder_without_classes_next_to_splits_by_unknown_words(image_folder: Folder) -> None:
    root = image_folder({"learn/cat": 2, "learn/dog": 2, "check/cat": 2, "check/dog": 2, "unlabelled": 2})
    with pytest.raises(DataError, match=r"each of the folders check, learn in .* holds the folders cat, dog"):
        load_data(root)


@pytest.mark.parametrize(
    "names",
    [
        ("images", "masks"),
        ("Image", "Ground_Truth"),
        ("train/images", "train/labels", "val/images", "val/labels"),
        ("images/train", "images/val", "labels/train", "labels/val"),
        ("JPEGImages", "SegmentationClass", "Annotations"),
    ],
)
def test_pictures_with_masks_are_no_classes(image_folder: Folder, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="pictures and what is drawn on them"):
        load_data(image_folder(dict.fromkeys(names, 3)))


def test_people_with_masks_are_a_class(image_folder: Folder) -> None:
    assert load_data(image_folder({"mask": 3, "no_mask": 3})).classes == ("mask", "no_mask")


def test_splits_inside_of_classes_are_a_question(image_folder: Folder) -> None:
    root = image_folder({f"{name}/{split}": 2 for name in ("cat", "dog") for split in ("Train", "Test")})
    with pytest.raises(DataError, match="put the splits above them: train/CLASS, test/CLASS"):
        load_data(root)


@pytest.mark.parametrize("inside", [("a", "b"), ("train/a", "train/b")])
def test_a_folder_too_many_is_named(image_folder: Folder, inside: tuple[str, str]) -> None:
    root = image_folder({f"unpacked/{name}": 2 for name in inside})
    with pytest.raises(DataError, match=r"one folder, with folders inside: .* give .*pets/unpacked"):
        load_data(root)


def test_one_folder_for_the_images_of_each_class_is_none(image_folder: Folder) -> None:
    assert load_data(image_folder({"cat/images": 2, "dog/images": 2})).classes == ("cat", "dog")


JUNK = ("@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbnails", ".thumbnails", "__MACOSX", "System Volume Information")


@pytest.mark.parametrize("junk", JUNK)
def test_folders_of_systems_are_no_classes_and_no_data(image_folder: Folder, junk: str) -> None:
    data = load_data(image_folder({"a": 3, "b": 3, junk: 2, f"a/{junk}": 2}))
    assert (data.classes, sizes(data)) == (("a", "b"), {"all": 6})
    (note,) = data.notes
    assert note.startswith("not used: 2 files or folders, hidden or put there by a system (")
    assert junk in note


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", ".DS_Store", "._img0.png", "~$notes.docx", "FOUND.012"])
def test_files_of_systems(name: str) -> None:
    assert is_junk(name)


@pytest.mark.parametrize("name", ["c.jfif", "c.jpe", "c.pjpeg", "c.JPG", "c", "c.dat", "c.png.bak"])
def test_images_are_known_by_their_content(image_folder: Folder, name: str) -> None:
    root = image_folder({"a": 3, "b": 3})
    Image.new("RGB", (9, 9)).save(root / "a" / name, format="JPEG")
    data = load_data(root)
    assert (sizes(data), data.notes) == ({"all": 7}, ())


def test_everything_that_is_left_out_is_counted_and_named(image_folder: Folder) -> None:
    root = image_folder({"a": 3, "b": 3})
    Image.new("RGB", (9, 9)).save(root / "loose.png")
    (root / "README.txt").write_text("words")
    for name in ("1.xml", "2.xml", "notes.txt"):
        (root / "a" / name).write_text("<no image/>")
    loose, left_out = load_data(root).notes
    assert loose == f"not used: 1 image in no class folder ({root}/loose.png)"
    assert left_out.startswith("not used: 4 files without an image that can be read, 2 x .txt, 2 x .xml (")


def test_images_beside_the_folders_of_splits_are_named(image_folder: Folder) -> None:
    root = image_folder({"train/a": 3, "train/b": 3, "test/a": 1})
    for folder in (root, root / "train"):
        Image.new("RGB", (9, 9)).save(folder / "loose.png")
    assert load_data(root).notes[0].startswith("not used: 2 images in no class folder (")


@pytest.mark.parametrize(
    "names",
    [
        ("Red", "red"),
        ("light red", "light  red"),
        ("light red", "light_red"),
        ("red", "re\u200bd"),
        ("red", "\ufeffred"),
        ("1", "1.0"),
        ("1", "01"),
        ("2,5", "2.50"),
        (NFC, NFD),
        ("ﬁsh", "fish"),
        ("x-ray", "x\u2013ray"),
        ("-1", "\u22121"),
        ("crow's feet", "crow\u2019s feet"),
        ("\u2764", "\u2764\ufe0f"),
        ("light red", "light\tred"),
    ],
)
def test_names_that_look_alike_are_a_question(image_folder: Folder, names: tuple[str, str]) -> None:
    root = image_folder({names[0]: 3, names[1]: 3, "other": 3})
    with pytest.raises(DataError, match="which look like one class: give it one name"):
        load_data(root)


@pytest.mark.parametrize("names", [("Red", "red"), ("light red", "light_red"), ("1", "1.0")])
def test_names_that_look_alike_are_two_where_that_is_said(image_folder: Folder, names: tuple[str, str]) -> None:
    root = image_folder({names[0]: 3, names[1]: 3})
    assert set(load_data(root, distinct_names=True).classes) == set(names)
    table = root.parent / "labels.csv"
    rows = [f"pets/{name}/img{number}.png,{name}" for name in names for number in range(3)]
    table.write_text("\n".join(["path,label", *rows]))
    with pytest.raises(DataError, match="or, if they are two, say so with --distinct-names"):
        load_data(table)
    assert set(load_data(table, distinct_names=True).classes) == set(names)
    assert set(load_task_table(table, distinct_names=True).tasks["label"].classes) == set(names)


@pytest.mark.parametrize("names", [(NFC, NFD), ("red", "red ")])
def test_names_that_are_one_text_cannot_be_two(image_folder: Folder, names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"which look like one class: give it one name$"):
        load_data(image_folder({names[0]: 3, names[1]: 3, "other": 3}), distinct_names=True)


@pytest.mark.parametrize("names", [("A", "a"), ("1", "10"), ("1.5", "15"), ("Maße", "Masse"), ("2", "²"), ("-1", "1")])
def test_names_that_are_different(names: tuple[str, str]) -> None:
    assert likeness(names[0]) != likeness(names[1])


@pytest.mark.parametrize("names", [(NFC, NFD), (NFD, NFC), ("red", "red "), (NFD, NFD)])
def test_encodings_of_one_name_are_one_class(image_folder: Folder, names: tuple[str, str]) -> None:
    data = load_data(image_folder({f"train/{names[0]}": 3, "train/b": 3, f"test/{names[1]}": 2}))
    assert sizes(data) == {"train": 6, "test": 2}
    assert data.classes == ("b", unicodedata.normalize("NFC", names[0]))


def test_a_split_in_a_folder_of_its_own_is_explained(image_folder: Folder) -> None:
    root = image_folder({f"seg_{split}/seg_{split}/{name}": 3 for split in ("train", "test") for name in "ab"})
    with pytest.raises(DataError, match=r"seg_train holds one folder, with folders inside: if .*seg_train/CLASS"):
        load_data(root)


def test_splits_that_spell_a_class_in_two_ways_are_a_question(image_folder: Folder) -> None:
    root = image_folder({"train/Red": 3, "train/b": 3, "test/red": 2})
    with pytest.raises(DataError, match="the names 'Red' and 'red', which look like one class"):
        load_data(root)


def test_a_class_name_that_is_not_utf_8_is_one_in_plain_text(image_folder: Folder) -> None:
    root = image_folder({"a": 3, "b": 3})
    os.rename(os.fsencode(root / "b"), os.fsencode(root) + b"/caf\xe9")
    data = load_data(root)
    assert data.classes == ("a", "caf\\xe9")
    assert len(data.examples) == 6


def test_a_class_name_is_text_where_the_locale_has_no_letters_for_it() -> None:
    code = f"from torchsnow.data.names import as_text; print(ascii(as_text({NFD!a})))"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", code]
    result = subprocess.run(words, env={**os.environ, **locale}, capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == (f"{NFC!a}\n", "")


@pytest.fixture
def linked(image_folder: Folder, tmp_path: Path) -> Path:
    """A class folder, a folder in a class, and a file are links that leave the data's folder."""
    root = image_folder({"a": 12, "b": 12, "c": 12})
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "b").rename(outside / "b")
    (root / "b").symlink_to(outside / "b")
    (root / "a" / "img0.png").rename(outside / "one.png")
    (root / "a" / "img0.png").symlink_to(outside / "one.png")
    (root / "a" / "more").symlink_to(outside / "more")
    (outside / "more").mkdir()
    (root / "a" / "img1.png").rename(outside / "more" / "img1.png")
    return root


@pytest.mark.parametrize("name", ["c", "test"])
def test_a_link_to_a_class_or_split_that_is_not_there_is_named(image_folder: Folder, name: str) -> None:
    root = image_folder({f"train/{one}" if name == "test" else one: 12 for one in "ab"})
    (root / name).symlink_to(root / "nowhere")
    assert load_data(root).skipped == (Skipped(root / name, "a broken link, or not a regular file"),)


def test_links_are_followed_by_wish(linked: Path) -> None:
    with pytest.raises(DataError, match=r"class 'b' .* used: [^ ]*/b/img0.png: .*\(--follow-links follows it\)"):
        load_data(linked)
    data = load_data(linked, follow_links=True)
    assert (sizes(data), data.skipped) == ({"all": 36}, ())
    assert data.relative_path(data.examples[0]) == "a/img0.png"
    assert len(make_splits(data).train) == 24


def test_links_that_lead_in_a_circle_end(linked: Path) -> None:
    (linked / "c" / "again").symlink_to(linked / "c")
    assert len(load_data(linked, follow_links=True).examples) == 36


def test_a_person_who_is_not_there() -> None:
    with pytest.raises(DataError, match="'~nobody-of-this-name/photos' does not exist"):
        load_data("~nobody-of-this-name/photos")


# To measure on: what there is suffices.


def test_one_class_is_enough_to_measure_on(image_folder: Folder) -> None:
    root = image_folder({"a": 2})
    with pytest.raises(DataError, match="only the class 'a'"):
        load_data(root)
    assert load_data(root, for_training=False).classes == ("a",)


@pytest.mark.parametrize("counts", [{"test/a": 2}, {"test/a": 2, "test/b": 1}, {"val/a": 1, "test/a": 2}])
def test_a_test_split_is_enough_to_measure_on(image_folder: Folder, counts: dict[str, int]) -> None:
    data = load_data(image_folder(counts), for_training=False)
    assert len(data.splits["test"]) == sum(count for name, count in counts.items() if "test" in name)
    assert data.classes == tuple(sorted({name.split("/")[1] for name in counts}))


# Contents


def test_swapped_contents_are_another_data_set(image_folder: Folder) -> None:
    root = image_folder({"a": 3, "b": 3})
    one, other = root / "a" / "img0.png", root / "b" / "img0.png"
    size = max(path.stat().st_size for path in (one, other))
    for path in (one, other):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (0, 0))
    first = load_data(root).fingerprint
    contents = one.read_bytes(), other.read_bytes()
    for path, content in zip((other, one), contents, strict=True):
        path.write_bytes(content)
        os.utime(path, (0, 0))
    assert load_data(root).fingerprint != first


@pytest.mark.parametrize("how", ["copy", "hard link"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "test/a",
            "image of 14, byte for byte, are in several splits (test/a/copy.png = train/a/img0.png): measured",
        ),
        ("train/b", "byte for byte, are in several classes (train/a/img0.png = train/b/copy.png): one of the labels"),
    ],
)
def test_copies_are_named(image_folder: Folder, how: str, place: str, words: str) -> None:
    root = image_folder({"train/a": 5, "train/b": 5, "test/a": 2, "test/b": 2})
    assert load_data(root).notes == ()
    source, copy = root / "train" / "a" / "img0.png", root / place / "copy.png"
    if how == "copy":
        copy.write_bytes(source.read_bytes())
    else:
        os.link(source, copy)
    (note,) = load_data(root).notes
    assert words in note


def test_copies_are_kept_in_one_split(image_folder: Folder) -> None:
    root = image_folder({"a": 10, "b": 10})
    for number in range(10):
        (root / "a" / f"copy{number}.png").write_bytes((root / "a" / f"img{number}.png").read_bytes())
    data = load_data(root)
    assert data.notes == ()
    for seed in range(3):
        splits = make_splits(data, seed=seed)
        contents = [{example.path.read_bytes() for example in part} for part in (splits.train, splits.val, splits.test)]
        assert not any(contents[one] & contents[other] for one, other in ((0, 1), (0, 2), (1, 2)))
        assert all(contents)


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_narrow_colours_of_16_bits_are_a_note(image_folder: Folder, planes: Literal["contig", "separate"]) -> None:
    root = image_folder({"a": 3, "b": 3})
    values = np.full((10, 12, 3), 4095, np.uint16)
    stored = values if planes == "contig" else np.moveaxis(values, -1, 0)
    tifffile.imwrite(root / "a" / "x.tif", stored, photometric="rgb", planarconfig=planes)
    (note,) = load_data(root).notes
    assert note.startswith("the colours of 1 image of 16 bits end at 4,095 of 65,535, and 16 of 256 values are left")
    tifffile.imwrite(root / "b" / "x.tif", values * 16, photometric="rgb")
    assert load_data(root).notes == ()


def test_a_narrow_range_of_16_bit_greys_is_a_note(image_folder: Folder) -> None:
    root = image_folder({"a": 3, "b": 3})
    for name in "ab":
        Image.fromarray(np.array([[0, 4095, ord(name)]], dtype=np.uint16)).save(root / name / "deep.png")
    data = load_data(root)
    assert data.notes == ()
    (note,) = advice_on_greys(list(data.greys.values()))
    assert note.startswith("the values of 2 grey images of 16 bits are 0 to 4,095 of 65,535, of which 16 of 256 greys")
    assert "--grey-range 0 4095" in note
    Image.fromarray(np.array([[0, 60000]], dtype=np.uint16)).save(root / "a" / "bright.png")
    assert advice_on_greys(list(load_data(root).greys.values())) == []


def test_a_folder_that_a_program_made_of_no_label_is_named(image_folder: Folder) -> None:
    (note,) = load_data(image_folder({"a": 3, "nan": 1})).notes
    assert note.startswith("1 image has the class 'nan', which programs write where no label is known")


@pytest.fixture
def unlabelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.usefixtures("unlabelled")
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


@pytest.mark.usefixtures("unlabelled")
def test_what_names_nothing_is_said() -> None:
    bad: list[tuple[Path, str]] = []
    assert find_images(["", "bare", "x*.png", "b"], lambda *what: bad.append(what)) == [Path("b/1.png")]
    assert bad == [
        (Path(), "the name of an image is empty"),
        (Path("bare"), "the folder bare holds no images"),
        (Path("x*.png"), "no file fits the pattern x*.png"),
    ]


@pytest.mark.usefixtures("unlabelled")
def test_a_folder_that_cannot_be_listed_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    list_one = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return list_one(path)

    monkeypatch.setattr(os, "scandir", refuse)
    bad: list[tuple[Path, str]] = []
    assert find_images(["a", "a/deep"], lambda *what: bad.append(what)) == [Path("a/2.JPG"), Path("a/10.jpg")]
    assert bad == [(Path("a/deep"), "cannot list the folder a/deep: Permission denied")] * 2
