from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Folder
from torchsnow.data import Example, ImageSet, datasets, load_data
from torchsnow.data.images import Examined
from torchsnow.data.names import natural_sorted
from torchsnow.errors import DataError


def table(folder: Path, text: str) -> str:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def loose_images(image_folder: Folder) -> Path:
    return image_folder({"pictures": 12})


def rows(labels: str, start: int = 0) -> str:
    return "".join(f"pictures/img{number}.png,{label}\n" for number, label in enumerate(labels, start=start))


# Folders


def test_class_folders(image_folder: Folder) -> None:
    root = image_folder({"class10": 2, "class2": 3, "class2/deeper/still": 1, ".hidden": 2})
    (root / "class2" / "notes.txt").write_text("not an image")
    (root / "class2" / ".thumb.png").write_bytes(b"")
    data = load_data(str(root))
    assert (data.name, data.classes) == ("pets", ("class2", "class10"))
    assert {name: len(split) for name, split in data.splits.items()} == {"all": 6}
    assert [example.label for example in data.splits["all"]] == [0, 0, 0, 0, 1, 1]
    assert data.relative_path(data.examples[-1]) == "class10/img1.png"
    assert data.skipped == ()


def test_train_is_a_class_among_other_vehicles(image_folder: Folder) -> None:
    assert load_data(image_folder({"plane": 2, "train": 2})).classes == ("plane", "train")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no class folders"),
        ({"a": 1, "b": 0}, r"class folder .*/b holds no images"),
        ({"only": 3}, "only the class 'only'"),
        ({"train/a": 2, "test/a": 1}, "only the class 'a'"),
        ({"cat": 1, "cat ": 1}, "the names 'cat' and 'cat ', which look like one class"),
        ({"train/a": 2, "train/b": 2, "test/c": 1}, "train split does not have: 'c' in test"),
        ({"train/a": 2, "val/a": 2, "more/a": 1}, r"others next to them \(more\)"),
        ({"train/a": 2, "val/a": 2, "valid/a": 1}, r"several folders for one split \(train, val, valid\)"),
        ({"train": 2, "test/a": 1}, "pets/train holds 2 images, but no class folders"),
        ({"train/a": 2, "train/b": 2, "test": 1}, "pets/test holds 1 image, but no class folders"),
    ],
)
def test_bad_folders(image_folder: Folder, tmp_path: Path, counts: dict[str, int], message: str) -> None:
    (tmp_path / "pets").mkdir()
    root = image_folder(counts)
    with pytest.raises(DataError, match=message):
        load_data(root)


@pytest.mark.parametrize("data", ["", "nowhere", "elpv:ternary", "nul\0byte", "x" * 5000])
def test_data_that_does_not_exist(data: str) -> None:
    with pytest.raises(DataError, match=r"does not exist: expected a folder of class folders|File name too long"):
        load_data(data)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is a file, but not a \.csv"):
        load_data(path)


def test_links_that_leave_the_folder_are_skipped(image_folder: Folder, tmp_path: Path) -> None:
    root = image_folder({"a": 15, "b": 15})
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "a" / "img3.png").rename(outside / "secret.png")
    os.symlink(outside / "secret.png", root / "a" / "link.png")
    os.symlink(outside, root / "b" / "linked")
    data = load_data(root)
    assert [(bad.path.name, bad.reason.split(",")[0].split(" (")[0]) for bad in data.skipped] == [
        ("link.png", f"a link to a file outside {root}"),
        ("linked", "a link to a folder"),
    ]
    assert len(data.examples) == 29


def test_a_class_folder_that_is_a_link_outside_has_no_images(image_folder: Folder, tmp_path: Path) -> None:
    root = image_folder({"a": 5, "b": 5})
    (root / "b").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", root / "b")
    with pytest.raises(DataError, match=r"no image of the class 'b'.* outside"):
        load_data(root)


def test_broken_links_and_pipes_are_skipped(image_folder: Folder) -> None:
    root = image_folder({"a": 15, "b": 15})
    os.symlink(root / "gone.png", root / "a" / "broken.png")
    os.mkfifo(root / "b" / "pipe.png")
    assert [bad.reason for bad in load_data(root).skipped] == ["a broken link, or not a regular file"] * 2


def test_one_file_in_two_classes_is_refused(image_folder: Folder) -> None:
    root = image_folder({"a": 3, "b": 3})
    os.symlink(root / "a" / "img0.png", root / "b" / "again.png")
    with pytest.raises(DataError, match=r"img0\.png and .*again\.png are one file"):
        load_data(root)


def test_damaged_images_are_skipped_with_a_reason(image_folder: Folder) -> None:
    root = image_folder({"a": 20, "b": 20})
    (root / "a" / "img1.png").write_bytes(b"")
    (root / "a" / "img2.png").write_bytes((root / "a" / "img2.png").read_bytes()[:150])
    (root / "b" / "img1.png").write_text("hello")
    data = load_data(root)
    assert [(bad.path.parent.name, bad.path.name, bad.reason.split()[0]) for bad in data.skipped] == [
        ("a", "img1.png", "the"),
        ("a", "img2.png", "damaged"),
        ("b", "img1.png", "not"),
    ]
    assert len(data.examples) == 37
    with pytest.raises(DataError, match=r"3 of 40 files in pets cannot be used, more than 5%; .*img1.png: the file is"):
        load_data(root, max_bad_share=0.05)


def test_a_whole_damaged_class_is_refused(image_folder: Folder) -> None:
    root = image_folder({"a": 30, "b": 1})
    (root / "b" / "img0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no image of the class 'b' in pets can be used: .*the file is empty"):
        load_data(root)


def test_progress_counts_every_image(image_folder: Folder) -> None:
    calls: list[tuple[int, int]] = []
    load_data(image_folder({"a": 3, "b": 2}), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_the_fingerprint_follows_names_classes_and_sizes_not_the_place(image_folder: Folder, tmp_path: Path) -> None:
    root = image_folder({"a": 3, "b": 3})
    first = load_data(root).fingerprint
    moved = root.rename(tmp_path / "elsewhere")
    assert load_data(moved).fingerprint == first
    (moved / "a").rename(moved / "c")
    renamed = load_data(moved).fingerprint
    Image.new("RGB", (40, 40)).save(moved / "b" / "img0.png")
    assert len({first, renamed, load_data(moved).fingerprint}) == 3


# Tables


def test_csv(loose_images: Path) -> None:
    data = load_data(table(loose_images, "\ufeffpath, label, photographer\n" + rows("bbaa").replace("\n", ",me\n")))
    assert (data.name, data.classes) == ("labels", ("a", "b"))
    assert [example.label for example in data.splits["all"]] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be the header"),
        ("file,label\na.png,b\n", r"header path,label .* not \['file', 'label'\]"),
        ("path,label\n", "has a header and no rows"),
        ("path,label\npictures/img0.png\n", r"no label in 1 row \(row 2: ''\)"),
        ("path,label\npictures/img0.png,  \n", r"no label in 1 row \(row 2: ''\)"),
        ("path,label\npictures/img0.png,a\n../labels.png,a\n", r"row 3: the path '../labels.png' leaves the folder"),
        ("path,label\n/etc/passwd,a\n", "row 2: the path '/etc/passwd' leaves the folder"),
        ("path,label\npictures/../../x.png,a\n", "row 2: .* leaves the folder"),
        ("path,label,split\npictures/img0.png,a,dev1x\n", "row 2: unknown split 'dev1x' in the column 'split'"),
        ("path,label,split\npictures/img0.png,a,\n", "row 2: unknown split '' in the column 'split'"),
        ("path,label,split\npictures/img0.png,a,test\n", "no images to train on"),
        ("path,label\n" + rows("abcab", start=9), r"2 files that do not exist: row 5: .*img12\.png; row 6: "),
        ("path,label\n" + rows("ab") + rows("a"), r"img0\.png and .*img0\.png are one file listed twice"),
        ("path,label\n" + rows("ab") + 'pictures/img5.png,"a "\n', "the names 'a' and 'a ', which look like one class"),
        ("path,label\n" + rows("aaa"), "only the class 'a'"),
        ("path,label\n" + "x" * 200_000, "cannot read the table"),
        ("path,label\npictures/\0.png,a\n", r"no path in 1 row \(row 2: 'pictures/"),
        ("path,label\n" + "x" * 6000 + ".png,a\n", "1 files that do not exist"),
    ],
)
def test_bad_tables(loose_images: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(table(loose_images, text))


def test_a_csv_row_whose_link_leaves_the_folder(loose_images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    os.symlink(tmp_path / "outside.png", loose_images / "link.png")
    with pytest.raises(DataError, match=r"row 4: the path 'link\.png' leaves the folder"):
        load_data(table(loose_images, "path,label\n" + rows("ab") + "link.png,a\n"))


def test_elpv_has_four_classes_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.data.checking.examine_image", lambda path: Examined(None, path.name))
    data = load_data("elpv")
    assert data.classes == ("defect-0.00", "defect-0.33", "defect-0.67", "defect-1.00")
    assert torch.bincount(torch.tensor([e.label for e in data.examples])).tolist() == [1508, 295, 106, 715]
    binary = load_data("elpv:binary")
    assert binary.classes == ("functional", "defective")
    assert sum(example.label for example in binary.examples) == 106 + 715
    assert binary.fingerprint != data.fingerprint


def test_elpv_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "elpv_dataset", None)
    with pytest.raises(DataError, match=r"pip install 'torchsnow\[demo\]'"):
        load_data("elpv")


def test_natural_order() -> None:
    assert natural_sorted(["b10", "B9", "a", "10", "9", "b"]) == ["9", "10", "a", "b", "B9", "b10"]


# ImageSet


class CountedReads:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._read = datasets.read_image
        monkeypatch.setattr(datasets, "read_image", self)

    def __call__(self, path: Path) -> Image.Image:
        self.count += 1
        return self._read(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> CountedReads:
    return CountedReads(monkeypatch)


@pytest.fixture
def examples(image_folder: Folder) -> list[Example]:
    return load_data(image_folder({"a": 4, "b": 2})).splits["all"]


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((6, 5))


def test_items_labels_and_subsets(examples: list[Example]) -> None:
    images = ImageSet(examples, ("a", "b"))
    image, label = images[5]
    assert (image.dtype, image.shape, label, type(label)) == (torch.uint8, (3, 10, 12), 1, int)
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    part = images.subset([5, 0])
    assert (len(part), part.classes, part.labels.tolist()) == (2, ("a", "b"), [1, 0])
    assert torch.equal(part[0][0], image)


def test_pixels_are_those_of_the_file(examples: list[Example]) -> None:
    with Image.open(examples[0].path) as image:
        assert tuple(ImageSet(examples, ("a", "b"))[0][0][:, 2, 7].tolist()) == image.getpixel((7, 2))


def test_later_epochs_and_derived_sets_do_not_decode(examples: list[Example], reads: CountedReads) -> None:
    def negative(image: Tensor) -> Tensor:
        return 255 - image

    images = ImageSet(examples, ("a", "b"), prepare=shrink)
    first = [image for image, _ in images]
    assert first[0].shape == (3, 5, 6)
    again = [image for image, _ in images.subset(range(6)).with_transform(negative)]
    assert reads.count == 6
    assert all(torch.equal(255 - a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, images, strict=True))


def test_a_full_cache_decodes_on_the_fly(examples: list[Example], reads: CountedReads) -> None:
    images = ImageSet(examples, ("a", "b"), prepare=shrink, cache_bytes=2 * 90 + 89)
    for _ in range(3):
        assert len(list(images)) == 6
    assert reads.count == 2 + 3 * 4


def test_a_file_lost_after_loading_is_named(examples: list[Example]) -> None:
    examples[0].path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a/img0\.png: the file is empty"):
        ImageSet(examples, ("a", "b"))[0]


def test_it_feeds_a_data_loader(examples: list[Example]) -> None:
    batches = list(torch.utils.data.DataLoader(ImageSet(examples, ("a", "b")), batch_size=4))
    assert [batch[0].shape[0] for batch in batches] == [4, 2]
    assert batches[1][1].tolist() == [1, 1]
