from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from torchsnow.data import Example, Splits
from torchsnow.data.sampling import reduced
from torchsnow.errors import DataError


def splits_of(train: int, val: int, test: int, seed: int = 0) -> Splits:
    """Made-up images; class "b" has a third of those of class "a"."""

    def examples(name: str, count: int) -> tuple[Example, ...]:
        return tuple(Example(Path(f"/data/{name}/{i}.png"), int(i % 4 == 3)) for i in range(count))

    parts = [examples(*part) for part in (("train", train), ("val", val), ("test", test))]
    return Splits(*parts, classes=("a", "b"), seed=seed, root=Path("/data"), fingerprint="f")


def labels(examples: tuple[Example, ...]) -> dict[int, int]:
    return dict(Counter(example.label for example in examples))


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
