from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsnow.data import Example, LoadedData, Splits, make_splits
from torchsnow.data.splits import parts_in, reduced
from torchsnow.errors import DataError

ROOT = Path("/data")


def loaded(**counts: list[int]) -> LoadedData:
    """loaded(train=[5, 3]) has five images of class c0 and three of c1 in its train split; no file exists."""
    splits = {
        split: [
            Example(ROOT / split / f"c{label}" / f"{number}.png", label)
            for label, count in enumerate(of_class)
            for number in range(count)
        ]
        for split, of_class in counts.items()
    }
    classes = tuple(f"c{label}" for label in range(max(map(len, counts.values()))))
    return LoadedData("digits", ROOT, classes, splits, (), "f00d")


def labels(examples: tuple[Example, ...]) -> dict[int, int]:
    return dict(Counter(example.label for example in examples))


@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=6),
    val_share=st.floats(0.01, 0.3),
    test_share=st.floats(0.01, 0.3),
    seed=st.integers(0, 2**32),
)
def test_splits_are_disjoint_complete_and_stratified(
    counts: list[int], val_share: float, test_share: float, seed: int
) -> None:
    data = loaded(all=counts)
    splits = make_splits(data, val_share, test_share, seed)
    together = [*splits.train, *splits.val, *splits.test]
    assert len(together) == len(set(together)) == sum(counts)
    assert set(together) == set(data.examples)
    for label, count in enumerate(counts):
        for part, share in ((splits.val, val_share), (splits.test, test_share)):
            assert labels(part)[label] >= 1
            assert abs(labels(part)[label] - count * share) < 1
    assert make_splits(data, val_share, test_share, seed) == splits


def test_the_seed_decides_and_the_listing_order_does_not() -> None:
    data = loaded(all=[20, 20])
    shuffled = replace(data, splits={"all": data.splits["all"][::-1]})
    assert make_splits(data) == make_splits(shuffled)
    assert set(make_splits(data, seed=0).test) != set(make_splits(data, seed=1).test)


def test_train_alone_is_treated_like_all() -> None:
    splits = make_splits(loaded(train=[20, 20]))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (28, 6, 6)
    assert splits.note == ""


def test_train_and_test_give_val_from_train() -> None:
    data = loaded(train=[20, 20], test=[4, 1])
    splits = make_splits(data, val_share=0.1)
    assert splits.test == tuple(data.splits["test"])
    assert labels(splits.val) == {0: 2, 1: 2}
    assert {*splits.train, *splits.val} == set(data.splits["train"])


def test_train_and_val_leave_no_test_and_say_so() -> None:
    data = loaded(train=[20, 20], val=[4, 1])
    splits = make_splits(data)
    assert set(splits.train) == set(data.splits["train"])
    assert splits.val == tuple(data.splits["val"])
    assert splits.test == ()
    assert "no test" in splits.note


def test_three_defined_splits_are_kept() -> None:
    data = loaded(train=[2, 1], val=[1, 1], test=[1, 1])
    splits = make_splits(data)
    assert [set(splits.train), set(splits.val), set(splits.test)] == [set(part) for part in data.splits.values()]
    assert splits.note == ""


def test_a_share_of_zero_is_an_empty_split() -> None:
    splits = make_splits(loaded(all=[10, 2]), test_share=0)
    assert splits.test == ()
    assert labels(splits.val) == {0: 2, 1: 1}


def test_ten_thousand_classes_are_split_in_one_pass_over_the_images() -> None:
    data = loaded(all=[3] * 10_000)
    start_s = time.process_time()
    splits = reduced(make_splits(data), train_images=10_000)
    assert time.process_time() - start_s < 5  # a pass for every class takes tens of seconds
    assert all(len(labels(part)) == len(part) == 10_000 for part in (splits.train, splits.val, splits.test))


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(DataError, match=r"class 'c1' has 2 images: .* leave none to train on; add images"):
        make_splits(loaded(all=[10, 2]))
    with pytest.raises(DataError, match=r"class 'c0' has 1 image: val \(15%\) and test \(0%\)"):
        make_splits(loaded(train=[1, 9], test=[1, 1]))


@pytest.mark.parametrize(("val_share", "test_share"), [(-0.1, 0.1), (0.5, 0.5), (0.1, float("inf"))])
def test_impossible_shares(val_share: float, test_share: float) -> None:
    with pytest.raises(DataError, match="at least 0 and sum to under 1"):
        make_splits(loaded(all=[10, 10]), val_share, test_share)


# Files


@pytest.fixture
def data() -> LoadedData:
    return loaded(all=[10, 8])


@pytest.fixture
def saved(data: LoadedData, tmp_path: Path) -> Path:
    path = tmp_path / "splits.json"
    make_splits(data, seed=3).save(path)
    return path


def test_save_then_load_is_equal_and_readable(data: LoadedData, saved: Path) -> None:
    assert Splits.load(saved, data) == make_splits(data, seed=3)
    content = json.loads(saved.read_text())
    assert content["classes"] == ["c0", "c1"]
    assert "all/c0/" in content["train"][0]
    assert [path.name for path in saved.parent.iterdir()] == ["splits.json"]


def test_a_moved_data_set_is_the_same(data: LoadedData, saved: Path) -> None:
    there = Path("/elsewhere")
    examples = [Example(there / data.relative_path(example), example.label) for example in data.examples]
    splits = Splits.load(saved, replace(data, root=there, splits={"all": examples}))
    assert all(example.path.is_relative_to(there) for example in splits.train)


def test_any_file_name_survives(data: LoadedData, tmp_path: Path) -> None:
    names = ["\udcff.png", "é 猫\n.png", '"quoted".png']
    odd = [Example(ROOT / f"{label}" / name, label) for name in names for label in (0, 1)]
    data = replace(data, splits={"all": odd})
    make_splits(data).save(tmp_path / "splits.json")
    assert Splits.load(tmp_path / "splits.json", data) == make_splits(data)
    assert "猫" in (tmp_path / "splits.json").read_text(encoding="utf-8", errors="surrogateescape")


def test_changed_data_is_refused(data: LoadedData, saved: Path) -> None:
    for other, message in [
        (loaded(all=[10, 6]), r"digits changed .*: 2 images are missing or unreadable now: all/c1/6\.png; all/c1/7"),
        (loaded(all=[11, 8]), r"1 images are new: all/c0/10\.png"),
        (replace(data, fingerprint="beef"), "classes, labels or file contents differ"),
        (replace(data, classes=("c0", "cat")), "classes, labels or file contents differ"),
    ]:
        with pytest.raises(DataError, match=message):
            Splits.load(saved, other)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"train": None},
        {"train": [["a"]]},
        {"val": ["all/c0/0.png"], "test": ["all/c0/0.png"]},
        {"seed": "0"},
        {"classes": 3},
        {"note": None},
    ],
)
def test_a_damaged_file_is_refused(data: LoadedData, saved: Path, change: dict[str, object]) -> None:
    saved.write_text(json.dumps(json.loads(saved.read_text()) | change))
    with pytest.raises(DataError, match=r"splits\.json is not a splits file"):
        Splits.load(saved, data)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "3", "\x00", "[" * 100_000])
def test_what_is_no_splits_file(data: LoadedData, tmp_path: Path, text: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is not a splits file"):
        Splits.load(path, data)


def test_unreachable_files(data: LoadedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no splits file .*gone\.json"):
        Splits.load(tmp_path / "gone.json", data)
    with pytest.raises(DataError, match="cannot write"):
        make_splits(data).save(tmp_path / "gone" / "splits.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        make_splits(data).save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_order_of_a_defined_split_does_not_depend_on_the_labels() -> None:
    data = loaded(train=[4, 4], val=[2, 2], test=[2, 2])
    swapped = {name: [replace(one, label=1 - one.label) for one in split] for name, split in data.splits.items()}
    orders = [[one.path for one in make_splits(each).train] for each in (data, replace(data, splits=swapped))]
    assert orders[0] == orders[1] == sorted(orders[0])


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (
            [138, 2],
            "1 class is rare in training: 'c1' has 2 images, 'c0' 138, 98.6% of all: look at balanced accuracy, and "
            "try --class-weights balanced",
        ),
        ([100, 1, 10], "2 classes are rare in training: 'c1' has 1 image, 'c0' 100, 90.1% of all: look at"),
        ([99, 10], ""),
    ],
)
def test_rare_classes_are_named(counts: list[int], sentence: str) -> None:
    data = loaded(train=counts, val=[1, 1], test=[1, 1])
    warnings = make_splits(data).warnings()
    assert (warnings[0].startswith(sentence)) if sentence else warnings == []


def splits_of(train: int, val: int, test: int, seed: int = 0) -> Splits:
    """Made-up images; class "b" has a third of those of class "a"."""

    def examples(name: str, count: int) -> tuple[Example, ...]:
        return tuple(Example(Path(f"/data/{name}/{i}.png"), int(i % 4 == 3)) for i in range(count))

    parts = [examples(*part) for part in (("train", train), ("val", val), ("test", test))]
    return Splits(*parts, classes=("a", "b"), seed=seed, root=Path("/data"), fingerprint="f")


def test_nothing_asked_for_changes_nothing() -> None:
    splits = splits_of(80, 20, 40)
    assert reduced(splits) == splits
    assert reduced(splits, train_images=1000, val_images=20, test_images=40) == splits


def test_classes_keep_their_proportion() -> None:
    small = reduced(splits_of(80, 20, 40), train_images=40, val_images=8, test_images=20)
    assert labels(small.train) == {0: 30, 1: 10}
    assert labels(small.val) == {0: 6, 1: 2}
    assert labels(small.test) == {0: 15, 1: 5}


def test_every_class_keeps_a_training_image() -> None:
    assert labels(reduced(splits_of(80, 20, 40), train_images=2).train)[1] == 1
    assert labels(reduced(splits_of(80, 20, 40), train_share=0.01).train)[1] == 1


def test_shots_are_so_many_images_of_every_class() -> None:
    assert labels(reduced(splits_of(80, 20, 40), shots=5).train) == {0: 5, 1: 5}


def test_a_smaller_draw_is_part_of_a_larger_one() -> None:
    splits = splits_of(80, 20, 40)
    small, large = (set(reduced(splits, train_images=count).train) for count in (20, 40))
    assert small < large < set(splits.train)
    assert set(reduced(splits, shots=1).train) < set(reduced(splits, shots=10).train)


def test_the_seed_alone_decides_which_images() -> None:
    draws = [reduced(splits_of(80, 20, 40, seed), train_images=20).train for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert set(draws[0]) != set(draws[2])


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"train_images": 5, "shots": 1}, "contradict each other"),
        ({"train_share": 0.0}, "train_share is 0.0; expected a share above 0"),
        ({"train_share": 1.5}, "train_share is 1.5"),
        ({"train_images": 0}, "train_images is 0; expected 1 or more"),
        ({"test_images": -1}, "test_images is -1"),
        ({"shots": 0}, "shots is 0; expected 1 or more"),
        ({"shots": 21}, "the class 'b' has fewer than 21 images"),
    ],
)
def test_impossible_wishes(wish: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        reduced(splits_of(80, 20, 40), **wish)  # type: ignore[arg-type]


def test_another_process_gets_the_same_splits() -> None:
    splits = make_splits(loaded(all=[9, 8]))
    odd = Example(ROOT / "caf\udce9.png", 1, (0, 1))  # a name that is not UTF-8, and several labels
    splits = replace(splits, test=(*splits.test, odd))
    assert Splits.from_dict(json.loads(json.dumps(splits.to_dict()))) == splits


def with_digests(data: LoadedData) -> LoadedData:
    """With contents that no two files share, and that a move to another class would not change."""
    return replace(data, digests={example.path: f"{example.path.relative_to(ROOT)}" for example in data.examples})


def parts_of(splits: Splits) -> dict[str, str]:
    """The split of every image by its content."""
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {splits.digests[example.path]: name for name, part in named.items() for example in part}


@pytest.mark.parametrize("grouped", [False, True])
def test_images_stay_in_their_splits_and_others_are_shared_out(grouped: bool, tmp_path: Path) -> None:
    data, more = with_digests(loaded(all=[20, 40])), with_digests(loaded(all=[40, 60]))
    if grouped:
        data, more = (
            replace(one, groups={each.path: f"{each.label} {int(each.path.stem) // 4}" for each in one.examples})
            for one in (data, more)
        )
    make_splits(data).save(tmp_path / "splits.json")
    former = parts_in(tmp_path / "splits.json")
    assert former == parts_of(make_splits(data))
    moved = {ROOT / "all" / "c1" / f"{number}.png" for number in range(3)}
    labels_now = [replace(one, label=0) if one.path in moved else one for one in more.examples]
    more = replace(more, splits={"all": labels_now})
    now = parts_of(make_splits(more, former=former))
    assert {digest: now[digest] for digest in former} == former
    assert len(now) == 100
    assert now != parts_of(make_splits(more))
    new = Counter(part for digest, part in now.items() if digest not in former)
    assert min(new.values()) >= 2
    assert new["train"] > new["val"] + new["test"]


def test_what_the_former_split_cannot_give_is_drawn_anew() -> None:
    data = with_digests(loaded(all=[20, 20]))
    of_first = {digest: part for digest, part in parts_of(make_splits(data)).items() if "c0" in digest}
    only_test = {f"all/c1/{number}.png": "test" for number in range(20)}
    assert make_splits(data, former=of_first | only_test) == make_splits(data, former=of_first)
    defined = with_digests(loaded(train=[20, 20], test=[5, 5]))
    was_test = {f"train/c0/{number}.png": "test" for number in range(20)}
    assert make_splits(defined, former=was_test) == make_splits(defined)


@pytest.mark.parametrize("text", ["", "{}", '{"digests": 3}', '{"digests": {"train": [1], "val": []}}'])
def test_a_file_that_does_not_know_contents_names_no_image(text: str, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(text)
    assert parts_in(tmp_path / "splits.json") == {}
    assert parts_in(tmp_path / "other.json") == {}
