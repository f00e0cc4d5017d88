"""The tables of the many small tasks."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from scripts import load_script
from torchsnow.data import load_data
from torchsnow.experiments.plan import Experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CLASSES = {
    "cars196": [*(f"00{i}_Audi_A{i}_2012" for i in range(4)), "005_BMW_M3_2012"],
    "birds200": [*(f"00{i}.Some_{i}_Wren" for i in range(5)), "009.Crow"],
    "plankton121": [f"copepod_{i}" for i in range(3)],
}


def test_a_table_for_every_group_of_four_classes(tmp_path: Path) -> None:
    for name, classes in CLASSES.items():
        for label in classes:
            for split, shade in (("train", 40), ("test", 80)):
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                Image.new("RGB", (8, 8), (shade, len(label), int("0123456789".find(label[2]) + 1))).save(
                    folder / "0.png"
                )
    script = load_script(EXPERIMENTS / "many_tasks.py")
    written = script.write_tables(tmp_path)
    assert [path.name for path in written] == ["cars196-audi.csv", "birds200-wren.csv"]
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {(row["label"], row["split"]) for row in rows} >= {
        ("000_Audi_A0_2012", "train"),
        ("003_Audi_A3_2012", "test"),
    }
    assert len(load_data(str(written[1])).classes) == 5


def test_the_experiment_names_such_tables() -> None:
    data = Experiment.load(EXPERIMENTS / "many-tasks.yaml").data
    assert len(data) == len(set(data)) == 45
    assert {name.partition("-")[0] for name in data} == set(CLASSES)
