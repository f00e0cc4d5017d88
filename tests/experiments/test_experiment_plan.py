from __future__ import annotations

from pathlib import Path

import pytest

from torchsnow.errors import ExperimentError, TorchsnowError
from torchsnow.experiments.plan import Experiment, PlannedCell, packaged_experiment
from torchsnow.methods import METHODS

PLAIN = {"name": "x", "data": ["elpv"], "methods": ["full", "snow"]}
STORED = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


def test_cells_are_all_combinations_and_the_first_seed_comes_first() -> None:
    experiment = Experiment.from_dict({**PLAIN, "data": ["elpv", "digits"], "seeds": [3, 1]})
    cells = experiment.cells()
    assert len(set(map(str, cells))) == 8
    assert cells[0] == PlannedCell("bundled", "elpv", "full", 3)
    assert [cell.seed for cell in cells if (cell.data, cell.method) == ("digits", "snow")] == [3, 1]


def test_factors_vary_together() -> None:
    vary = {"width_divisor": [4, 8], "shots": [1, 5]}
    cells = Experiment.from_dict({**PLAIN, "methods": ["snow:paper"], "seeds": [0], "vary": vary}).cells()
    assert [cell.variant for cell in cells] == [
        {"width_divisor": width, "shots": shots} for width in (4, 8) for shots in (1, 5)
    ]


def test_settings_that_exclude_each_other_alone_may_vary_together() -> None:
    narrow = {"grid_width": [None], "width_divisor": [4, 8]}
    assert len(Experiment.from_dict({**PLAIN, "methods": ["snow"], "seeds": [0], "vary": narrow}).cells()) == 2


def test_every_method_gets_as_many_learning_rates_around_its_own() -> None:
    experiment = Experiment.from_dict({**PLAIN, "methods": ["full", "snow:paper"], "lr_tries": 3})
    for method, name in (("full", "full"), ("snow:paper", "snow")):
        lrs = experiment.lrs(method)
        assert lrs == pytest.approx([METHODS[name].lr * factor for factor in (10**-0.5, 1, 10**0.5)])
    assert Experiment.from_dict({**PLAIN, "lr_tries": 1}).lrs("full") == [METHODS["full"].lr]


def test_an_experiment_survives_yaml(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: [elpv, digits]\nmethods: [snow]\naugmentations: {digits: none}\nvary: {sigma: [0, 0.5]}\n")
    experiment = Experiment.load(file)
    assert experiment.name == "mine"
    assert experiment.settings("digits", 1.0, 0).augmentation == "none"
    assert experiment.settings("elpv", 1.0, 0).augmentation == "flip"
    assert Experiment.from_dict(experiment.to_dict()) == experiment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "an experiment has no 'epoch'; expected some of .*epochs"),
        ({"data": []}, "data is empty"),
        ({"data": "elpv"}, "data is 'elpv'; expected a list"),
        ({"methods": ["full", "full"]}, "methods lists something twice"),
        ({"methods": ["rain:x"]}, "there is no method 'rain'"),
        ({"methods": ["full:paper"]}, "'full' has no preset 'paper'"),
        ({"seeds": ["a"]}, "seeds has 'a'; expected values of type int"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"epochs": 0}, "epochs is 0; expected a whole number of 1 or more"),
        ({"lr_tries": 0}, "lr_tries is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"augmentation": "wild"}, "augmentation is 'wild'"),
        ({"augmentations": {"digits": "none"}}, "augmentations names 'digits', which is not among the data"),
        ({"vary": {"width_divisor": [4]}}, "vary has 'width_divisor', a setting of a delta, and the method 'full'"),
        ({"vary": {"shots": [1]}, "train_images": 5}, "train_images contradicts a varied number"),
        ({"vary": {"shots": 1}}, "vary.shots is 1; expected a list"),
        ({"vary": [1]}, r"vary is \[1\]; expected names and values"),
        ({"vary": {"shots": []}}, "vary.shots is empty"),
        ({"methods": ["snow"], "vary": {"widht": [4]}}, "a delta has no setting 'widht'"),
        ({"methods": ["snow:paper"], "vary": {"width_divisor": ["a"]}}, "width_divisor is 'a'"),
        ({"methods": ["snow"], "vary": {"width_divisor": [4]}}, "a grid body or a narrow copy, not both"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_what_is_no_experiment_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TorchsnowError, match=message):
        Experiment.from_dict({**PLAIN, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [snow]", "the experiment lacks 'data'"),
        ("- 1", "expected names and values"),
        ("data: [", "is not a YAML file"),
        ("data: !!python/object/apply:os.system [ls]", "is not a YAML file"),
    ],
)
def test_what_is_no_experiment_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ExperimentError, match=message):
        Experiment.load(file)
    with pytest.raises(ExperimentError, match=r"cannot read the experiment .*no such file"):
        Experiment.load(tmp_path / "missing.yaml")


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_stored_experiments_are_experiments(file: Path) -> None:
    experiment = Experiment.load(file)
    assert experiment.name == file.stem
    assert len(experiment.seeds) >= 3


def test_there_are_stored_experiments() -> None:
    assert {"five-sets", "offline-lite0"} <= {file.stem for file in STORED}


def test_ready_made_experiments() -> None:
    assert packaged_experiment("smoke").data == ("digits",)  # offline
    assert "its figures mean nothing" in packaged_experiment("smoke").remark
    assert packaged_experiment("paper").data == ("food101", "dtd", "action40", "cars", "cub200")
    assert packaged_experiment("paper").sources == ("resnet50.tv_in1k",)
