"""Images with any number of labels, from a CSV file to answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelled_images import LABELS, label_sets, labelled_images, write
from torchsnow.data import load_data, make_splits
from torchsnow.errors import DataError
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.workflows.evaluation import evaluate_task, examples_of
from torchsnow.workflows.place import Place
from torchsnow.workflows.predictions import Prediction, predict_images
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import TrainedTask, train_task

SETTINGS = TrainSettings(epochs=1, image_size=32, batch_size=16, lr=0.005)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_images(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="module")
def trained(source: Source, table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, TrainedTask, Path]:
    folder = tmp_path_factory.mktemp("hubs")
    data = load_data(table, multi_label=True)
    place, run = Place(folder / "hub", source), RunFolder(folder / "run")
    result = train_task(data, "looks", run, Recipe(SETTINGS), source, place)
    return Hub.open(folder / "hub", source), result, folder / "run" / "splits.json"


def test_names_between_bars_and_columns_of_flags_say_the_same(table: Path) -> None:
    by_name, by_flag = (load_data(table.with_name(name), multi_label=True) for name in ("names.csv", "flags.csv"))
    assert by_name.classes == by_flag.classes == LABELS
    assert by_name.splits == by_flag.splits
    assert by_name.fingerprint == by_flag.fingerprint
    found = {example.path.name: example.all_labels for example in by_name.examples}
    assert (found["0.png"], found["1.png"], found["6.png"], found["7.png"]) == ((), (0,), (1, 2), (0, 1, 2))


def test_bars_in_names_are_a_hint(table: Path) -> None:
    rows = [["path", "label"], ["0.png", "red|blue"], ["1.png", "green"]]
    notes = load_data(write(table.with_name("bars.csv"), rows)).notes
    assert any("--multi-label takes what is between for labels of one image" in note for note in notes)


def test_columns_that_are_no_labels_are_named(table: Path) -> None:
    rows = [line.split(",") for line in table.with_name("flags.csv").read_text().splitlines()]
    more = [
        ["patient", "score", "is_test"],
        *([number // 3, number % 3, number % 2] for number in range(len(rows) - 1)),
    ]
    data = load_data(
        write(table.with_name("more.csv"), [[*a, *b] for a, b in zip(rows, more, strict=True)]), multi_label=True
    )
    assert data.classes == (*LABELS[:1], "is_test", *LABELS[1:])
    unused, group, split = data.notes
    assert unused.endswith("'patient', 'score'")
    assert "--group-column patient" in group
    assert split.endswith("use it by --split-column is_test")


def test_flags_as_pandas_writes_them(table: Path) -> None:
    flags = table.with_name("flags.csv")
    floats = table.with_name("floats.csv")
    floats.write_text(flags.read_text().replace(",1", ",1.0").replace(",0", ",0.0"))
    assert load_data(floats, multi_label=True).splits == load_data(flags, multi_label=True).splits


def test_labels_with_commas_between_are_a_hint(table: Path) -> None:
    rows = [["path", "label"], ["0.png", "red, blue"], ["1.png", "green"]]
    notes = load_data(write(table.with_name("commas.csv"), rows), multi_label=True).notes
    assert any("write | between labels" in note for note in notes)


def test_every_split_has_every_label(table: Path) -> None:
    splits = make_splits(load_data(table, multi_label=True))
    for part in (splits.train, splits.val, splits.test):
        assert {label for example in part for label in example.all_labels} == {0, 1, 2}
    assert len(splits.train) + len(splits.val) + len(splits.test) == 90


def test_groups_stay_together_with_several_labels(table: Path) -> None:
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    grouped = [["path", "label", "group"], *([name, label, f"g{int(name[:-4]) // 5}"] for name, label in rows)]
    data = load_data(write(table.with_name("grouped.csv"), grouped), multi_label=True)
    splits = make_splits(data)
    groups = [{data.groups[example.path] for example in part} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 18


def test_a_slip_in_a_column_of_flags_does_not_drop_the_label(table: Path) -> None:
    rows = [[f"{n}.png", n % 2, 2 if n == 7 else 1] for n in range(20)]
    slip = write(table.with_name("slip.csv"), [["path", "red", "round"], *rows])
    with pytest.raises(
        DataError, match=r"'round' of .* has 0 or 1 but for 1 cell, the first in row 9, '2': correct it"
    ):
        load_data(slip, multi_label=True)
    remarks = [[name, red, 1, "blurred" if name == "7.png" else ""] for name, red, _ in rows]
    noted = write(table.with_name("noted.csv"), [["path", "red", "round", "remark"], *remarks])
    assert load_data(noted, multi_label=True).classes == ("red", "round")


def test_what_says_no_labels_is_refused(table: Path) -> None:
    other = write(table.with_name("other.csv"), [["path", "size"], ["0.png", 3]])
    with pytest.raises(DataError, match=r"neither a column label with names, as red\|round, nor columns of 0 and 1"):
        load_data(other, multi_label=True)
    alike = write(table.with_name("alike.csv"), [["path", "label"], ["0.png", "Red"], ["1.png", "red|blue"]])
    with pytest.raises(DataError, match="the names 'Red' and 'red'"):
        load_data(alike, multi_label=True)
    with pytest.raises(DataError, match="images with several labels come from a CSV file"):
        load_data(table.parent.parent, multi_label=True)


def test_a_task_of_several_labels_learns_them_all(trained: tuple[Hub, TrainedTask, Path]) -> None:
    hub, result, _ = trained
    thresholds = hub.info("looks").thresholds
    assert thresholds is not None
    assert len(thresholds) == len(LABELS)
    assert result.test is not None
    assert result.test.mean_average_precision is not None
    assert result.test.mean_average_precision > 0.9
    assert result.test.accuracy > 0.5  # all three right; by chance 1 in 8


def test_it_is_measured_again_by_its_own_thresholds(trained: tuple[Hub, TrainedTask, Path], table: Path) -> None:
    hub, result, splits = trained
    data = load_data(table, multi_label=True)
    found = evaluate_task(hub, "looks", data, examples_of(data, "test", splits))
    assert result.test is not None
    assert found.metrics.accuracy == pytest.approx(result.test.accuracy, abs=0.1)
    assert found.metrics.mean_average_precision == pytest.approx(result.test.mean_average_precision, abs=0.02)
    rows = list(found.rows(data))
    assert sum(row[3] for row in rows) == found.metrics.accuracy * len(rows)
    assert {row[1] for row in rows} <= {"|".join(own) for own in label_sets()}


def test_an_answer_has_a_probability_for_every_label(trained: tuple[Hub, TrainedTask, Path], table: Path) -> None:
    hub, _, _ = trained
    thresholds = dict(zip(hub.info("looks").classes, hub.info("looks").thresholds or (), strict=True))

    def refuse(path: Path, why: str) -> None:
        raise AssertionError(why)

    files = [table.with_name(f"{number}.png") for number in range(8)]
    answers: list[Prediction] = list(predict_images(hub, files, None, refuse))
    for one in answers:
        assert set(one.labels) == {name for name, share in one.probabilities.items() if share >= thresholds[name]}
    assert sum(answers[7].probabilities.values()) > 1.5  # all three
    assert sum(answers[0].probabilities.values()) < 1  # none
    assert sum(set(one.labels) == set(own) for one, own in zip(answers, label_sets(), strict=True)) >= 6
