from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from command_line import SIZES, TINY, Outcome, Trained, refused, snapshot, torchsnow
from safetensors.torch import load_file

from sample_photos import make_photos
from torchsnow.errors import SourceError
from torchsnow.hub import Hub
from torchsnow.train.loop import Loop


def train(photos: Path, *words: str | Path, task: str = "new", hub: str | Path = "hub") -> Outcome:
    return torchsnow("train", photos, "--task", task, "--hub", hub, *words)


def task_tensors(hub: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(hub / "tasks" / name / f"{Hub.open(hub).infos()[name].sha256}.safetensors")


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[key], others[key]) for key in some)


def stop_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in the second step of an epoch."""
    step = Loop._step

    def pressed(self: Loop, images: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
        if number == (epoch - 1) * self.steps + 1:
            raise KeyboardInterrupt
        return step(self, images, labels, number)

    monkeypatch.setattr(Loop, "_step", pressed)


def test_a_run_leaves_everything_that_it_promises(pristine: Trained) -> None:
    printed = pristine.printed
    assert printed["task"] == "colours"
    assert (printed["hub"], printed["run"]) == (str(pristine.hub), str(pristine.run))
    assert printed["test_images"] == 6
    assert printed["skipped_images"] == 0
    assert {path.name for path in pristine.run.iterdir()} == {
        *("args.yaml", "splits.json", "log.txt", "results.csv", "subscription.json", "metrics.json"),
        *("results.png", "confusion_matrix.png", "last.safetensors", "best.safetensors", "shipped.json", ".lock"),
        "near_duplicates.csv",
    }
    args = yaml.safe_load((pristine.run / "args.yaml").read_text())
    assert (args["training"]["epochs"], args["training"]["image_size"]) == (2, 32)
    with (pristine.run / "results.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    info = Hub.open(pristine.hub).info("colours")
    assert info.classes == ("blue", "green", "red")
    assert info.metrics["test"]["accuracy"] == printed["test_accuracy"]
    assert (info.training["method"], info.training["data"]) == ("snow", "photos")
    assert Hub.open(pristine.hub).verify() == []


def test_a_run_that_learns_its_choice_leaves_how_it_settled(photos: Path) -> None:
    assert train(photos, *TINY, "--epochs", "1", "--preset", "paper").code == 0
    with Path("runs/new/selection.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"1"}


def test_a_person_gets_a_few_lines_on_stdout_and_progress_on_stderr(photos: Path) -> None:
    outcome = train(photos, *TINY, "--epochs", "1")
    assert outcome.code == 0
    result, probe, test, place, *alone = outcome.out.splitlines()
    judged = r"\d+\.\d% on 6 {} \(95%: \d+% to \d+%{}\), balanced \d+\.\d%"
    of_val = judged.format("validation images", "; always naming the largest class: 33%")
    assert re.fullmatch(rf"(a linear head alone|the best model, of epoch 1,) has {of_val}", result)
    assert re.fullmatch(r"a linear head at the start: \d+\.\d% on the same images", probe)
    assert re.fullmatch(rf"test accuracy {judged.format('images', '')}; the largest class alone 33\.3%", test)
    assert all("so it has none" in line for line in alone)
    assert "task 'new' is in the hub hub" in place
    assert "the run is in runs/new" in place
    assert re.search(r"usable now: \d+\.\d% on 6 validation images .*; task 'new' is in the hub hub", outcome.err)
    assert "epoch 1: loss" in outcome.err
    assert (Path("runs/new") / "args.yaml").exists()


def test_a_task_a_hub_and_a_run_folder_have_names_of_their_own(photos: Path) -> None:
    first = torchsnow("train", photos, *TINY, "--epochs", "1", "--json").document
    assert (first["task"], first["hub"], first["run"]) == ("photos", "hub", "runs/photos")
    second = torchsnow("train", photos, *TINY, "--epochs", "1", "--json", "--replace").document
    assert second["run"] == "runs/photos-2"
    again = ("--epochs", "1", "--seed", "1", "--json", "--replace", "--overwrite")
    third = torchsnow("train", photos, *TINY, *again).document
    assert third["run"] == "runs/photos-2"
    assert [path.name for path in sorted(Path("runs").iterdir())] == ["photos", "photos-2"]
    assert len(Hub.open(Path("hub")).index().versions("photos")) == 3  # no stages among them
    assert "has a task 'photos' already" in refused("train", photos, *TINY)


def test_common_names_of_options_are_taken(photos: Path) -> None:
    words = ("--model", "test_resnet", "--checkpoint", "random", "--img-size", "32", "--batch", "8", "--lr", "0.005")
    assert torchsnow("train", photos, "--task", "new", *words, "--epochs", "1").code == 0
    args = yaml.safe_load(Path("runs/new/args.yaml").read_text())
    assert (args["training"]["image_size"], args["training"]["batch_size"]) == (32, 8)
    source = Hub.open(Path("hub")).source_info
    assert (source.name, source.weights) == ("test_resnet", "random")


def test_pretrained_asks_for_the_weights_of_the_source(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def source_for(hub: Path, name: str, weights: str, *others: object) -> None:
        asked.append((name, weights))
        raise SourceError("this is all")

    monkeypatch.setattr("torchsnow.hub.source_for", source_for)
    assert train(photos, "--model", "resnet18", "--pretrained").err.splitlines()[-1] == "torchsnow: this is all"
    assert asked == [("resnet18", "pretrained")]
    told = refused("train", photos, "--model", "resnet18", "--pretrained", "--checkpoint", "mine.pth")
    assert told == "--pretrained and --weights mine.pth contradict each other; give one of them"


def test_time_is_kept_to_by_fewer_epochs(photos: Path) -> None:
    outcome = train(photos, *TINY, "--epochs", "50", "--time", "0.01s")
    assert outcome.code == 0
    assert "stopped after 0 epochs: there is no time for more" in outcome.err
    assert Hub.open(Path("hub")).names() == ["new"]


def test_a_time_that_is_none_is_refused(photos: Path) -> None:
    for word in ("soon", "0", "-3", "5d", " "):
        sentence = refused("train", photos, "--task", "a", *TINY, "--time", word)
        assert "expected a time as in 90s, 10m or 1.5h" in sentence


def test_the_hub_keeps_its_source_and_its_other_tasks(trained: Trained) -> None:
    before = snapshot(trained.hub / "tasks")
    outcome = train(trained.photos, "--image-size", "32", "--epochs", "1", hub=trained.hub)
    assert outcome.code == 0, outcome
    after = snapshot(trained.hub / "tasks")
    assert before.items() <= after.items()
    assert Hub.open(trained.hub).names() == ["colours", "new"]


@pytest.mark.parametrize("words", [["--json"], []], ids=["json", "text"])
def test_a_name_that_is_taken_is_refused_before_training(
    trained: Trained, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("torchsnow.cli.data_options.load_checked")  # not even the images are looked at
    before = snapshot(trained.hub, trained.run)
    sentence = refused(
        "train", trained.photos, "--task", "colours", "--hub", trained.hub, *TINY, "--out", "other", *words
    )
    assert "has a task 'colours' already" in sentence
    assert "--replace" in sentence
    assert snapshot(trained.hub, trained.run) == before
    assert not Path("other").exists()


def test_replace_puts_the_new_task_in_the_place_of_the_old(trained: Trained) -> None:
    old = task_tensors(trained.hub, "colours")
    words = (*TINY, "--epochs", "1", "--seed", "1", "--replace", "--out", "other")
    outcome = train(trained.photos, *words, task="colours", hub=trained.hub)
    assert outcome.code == 0, outcome
    assert not equal(task_tensors(trained.hub, "colours"), old)
    assert Hub.open(trained.hub).verify() == []


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c_says_how_to_resume_and_resuming_ends_as_if_nothing_had_been(
    pristine: Trained, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_in(epoch, patched)
        outcome = train(pristine.photos, *TINY, "--epochs", "2", "--json", "--out", "my run", task="colours")
    assert (outcome.code, outcome.out) == (130, "")
    (message,) = outcome.err.splitlines()
    assert f"{epoch - 1} of 2 epochs are safe in my run" in message
    assert Hub.open(Path("hub")).names() == ["colours"]  # with the best so far
    program, *words = shlex.split(message.partition("to continue: ")[2])
    assert (program, words[-1]) == ("torchsnow", "--resume")

    resumed = torchsnow(*words)
    assert (resumed.code, resumed.err) == (0, "")
    same = ("val_accuracy", "test_accuracy", "best_epoch", "size_bytes")
    assert {key: resumed.document[key] for key in same} == {key: pristine.printed[key] for key in same}
    assert equal(load_file("my run/best.safetensors"), load_file(pristine.run / "best.safetensors"))
    assert equal(load_file("my run/last.safetensors"), load_file(pristine.run / "last.safetensors"))
    assert equal(task_tensors(Path("hub"), "colours"), task_tensors(pristine.hub, "colours"))


def test_what_is_left_out_is_chosen_said_and_written_down(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in(1, monkeypatch)
    outcome = train(photos, *TINY[:4])
    assert outcome.code == 130
    args = yaml.safe_load(Path("runs/new/args.yaml").read_text())
    numbers = {name: args["training"][name] for name in ("image_size", "batch_size", "epochs", "lr")}
    assert set(args["chosen"]) == {*numbers, "patience"}
    assert tuple(numbers.values()) == (64, 8, 60, 3e-3)
    assert args["training"]["patience"] == 20
    for name, value in numbers.items():
        assert f"{name} {value}: {args['chosen'][name]}" in outcome.err


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_chosen_run_is_that_with_the_numbers_given_also_when_resumed(
    photos: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    tiny = (*TINY[:4], "--epochs", "2", "--json", "--preset", preset)
    with monkeypatch.context() as patched:
        stop_in(2, patched)
        assert train(photos, *tiny, "--out", "chosen").code == 130
    with monkeypatch.context() as patched:
        patched.delattr("torchsnow.workflows.recipe.auto_sizes")
        patched.delattr("torchsnow.workflows.recipe.auto_lr")
        assert train(photos, *tiny, "--out", "chosen", "--resume").code == 0
    args = yaml.safe_load(Path("chosen/args.yaml").read_text())
    assert list(args["chosen"]) == ["image_size", "batch_size", "lr"]
    options = [f"--{name.replace('_', '-')}={args['training'][name]}" for name in args["chosen"]]
    assert train(photos, *tiny, *options, "--out", "given", task="given").code == 0
    assert "chosen" not in yaml.safe_load(Path("given/args.yaml").read_text())
    assert equal(load_file("chosen/last.safetensors"), load_file("given/last.safetensors"))
    assert equal(load_file("chosen/best.safetensors"), load_file("given/best.safetensors"))


def test_a_run_worse_than_its_probe_is_warned_of(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.workflows.training.below_probe", lambda *what: "it is bad")
    said = train(photos, *TINY, "--epochs", "1")
    assert said.err.splitlines()[-1] == "warning: it is bad"
    assert "warning: it is bad" in Path("runs/new/log.txt").read_text()
    assert train(photos, *TINY, "--epochs", "1", "--json", task="b").document["warning"] == "it is bad"


def test_ctrl_c_before_the_training_says_that_nothing_was_begun(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(data: str, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchsnow.cli.data_options.load_checked", stopped)
    outcome = train(photos, *TINY)
    assert (outcome.code, outcome.err) == (130, "torchsnow: interrupted; no training was begun\n")
    assert not Path("runs").exists()


def test_ctrl_c_after_the_last_epoch_loses_nothing(pristine: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("torchsnow.workflows.training.complete", stopped)
        outcome = train(pristine.photos, *TINY, "--epochs", "2", task="colours")
    assert outcome.code == 130
    assert "interrupted; to continue: torchsnow train" in outcome.err
    assert train(pristine.photos, *TINY, "--epochs", "2", "--resume", task="colours").code == 0
    assert equal(task_tensors(Path("hub"), "colours"), task_tensors(pristine.hub, "colours"))


def test_resume_without_a_run_is_refused_and_makes_nothing(photos: Path) -> None:
    sentence = refused("train", photos, "--task", "new", "--hub", "hub", *TINY, "--resume")
    assert "there is no run to resume in runs/new" in sentence
    assert not Path("runs").exists()
    assert not Path("hub").exists()


def test_resume_with_other_settings_is_refused(trained: Trained) -> None:
    before = snapshot(trained.hub, trained.run)
    words = ("--task", "other", "--hub", trained.hub, *TINY, "--out", trained.run, "--resume")
    sentence = refused("train", trained.photos, *words, "--epochs", "3", "--lr", "0.5")
    assert "it was started with training.epochs = 2, not 3 (and 1 more)" in sentence
    assert snapshot(trained.hub, trained.run) == before


def test_warm_up_needs_more_than_one_epoch(photos: Path) -> None:
    words = ("train", photos, "--task", "a", "--hub", "hub", *TINY)
    assert "warmup_epochs is 3; expected fewer than the 3 epochs" in refused(
        *words, "--epochs", "3", "--warmup-epochs", "3"
    )
    assert train(photos, *TINY, "--epochs", "1").code == 0


@pytest.mark.parametrize(("method", "own_lr"), [("head", 0.01), ("full", 0.0005)])
def test_a_method_without_a_delta_stays_in_its_run_folder(
    method: str, own_lr: float, photos: Path, tmp_path: Path
) -> None:
    words = ("--task", "colours-full", "--method", method, *SIZES, "--epochs", "1", "--out", tmp_path / "run")
    outcome = torchsnow("train", photos, *words, "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["hub"] is None
    assert outcome.document["size_bytes"] > 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] == outcome.document["test_accuracy"]
    lr = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())["training"]["lr"]
    assert own_lr / 10 <= lr <= 3 * own_lr
    again = torchsnow("train", photos, *words, "--resume")
    assert again.code == 0, again
    assert "what was trained" in again.out


@pytest.mark.parametrize("method", ["scratch", "random", "side"])
def test_other_deltas_are_tasks_too(method: str, photos: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    outcome = torchsnow("train", photos, "--task", method, "--hub", hub, "--method", method, *TINY, "--epochs", "1")
    assert outcome.code == 0, outcome
    assert torchsnow("predict", photos / "red" / "0.png", "--hub", hub).code == 0
    assert torchsnow("hub", "verify", "--hub", hub).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "full", "--hub", "hub"], "the method 'full' does not train a delta.*leave out the hub"),
        (["--method", "full", "--replace"], "the method 'full' does not train a delta"),
        (["--method", "full", "--preset", "paper"], "the method 'full' has no preset 'paper'"),
        (["--method", "fulll"], "there is no method 'fulll'; did you mean 'full'"),
        (["--method", "full", "--precision", "bf16"], "loaded in bf16, which is for methods that keep it frozen"),
    ],
)
def test_contradictions_of_method_and_hub_are_one_sentence(words: list[str], message: str, photos: Path) -> None:
    outcome = torchsnow("train", photos, "--task", "a", *TINY, "--epochs", "1", *words)
    assert outcome.code == 2, outcome
    assert re.search(message, outcome.err), outcome.err
    assert not Path("hub").exists()
    assert not Path("runs").exists()


def test_resume_after_a_kill_before_the_run_had_its_settings_begins_it(photos: Path) -> None:
    run = Path("runs") / "new"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    assert train(photos, *TINY, "--epochs", "1", "--resume").code == 0
    assert Hub.open("hub").names() == ["new"]


@pytest.mark.parametrize("option", ["--out", "--hub"])
def test_nothing_is_written_among_the_images(option: str, photos: Path, tmp_path: Path) -> None:
    for folder in (photos, photos / "new"):
        sentence = refused("train", photos, "--task", "a", "--hub", tmp_path / "hub", option, folder)
        assert sentence.startswith(f"{folder} lies inside the data {photos}")
        assert f"choose another {option}" in sentence


@pytest.mark.parametrize("words", [("--out", ""), ("--hub", ""), ("--hub=",), ("--task", ""), ("--time", "")])
def test_an_option_without_a_value_is_refused(words: tuple[str, ...], photos: Path) -> None:
    assert refused("train", photos, *words, *TINY).startswith(f"{words[0].rstrip('=')} is empty")
    assert refused("hub", "list", "--hub", "").startswith("--hub is empty")
    assert list(Path().iterdir()) == []


def test_a_log_of_an_unknown_kind_is_refused_before_anything_slow(photos: Path, tmp_path: Path) -> None:
    sentence = refused("train", photos, "--task", "a", "--hub", tmp_path / "hub", "--log", "paper:x")
    assert sentence.startswith("'paper:x' names no logger; expected tensorboard:FOLDER")
    assert not (tmp_path / "hub").exists()


def test_a_training_is_logged(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Logger:
        def __init__(self, place: str, name: str) -> None:
            assert (place, name) == ("here", "a")

        def log_settings(self, settings: dict[str, object]) -> None:
            assert settings["training.epochs"] == 1

        def log_values(self, values: dict[str, float], epoch: int) -> None:
            told.append(epoch)

        def log_file(self, path: Path) -> None:
            assert path.exists()

        def close(self, finished: bool) -> None:
            assert finished

    monkeypatch.setattr("torchsnow.workflows.loggers.LOGGERS", {"own": Logger})
    words = ("train", photos, "--task", "a", "--hub", tmp_path / "hub", *TINY, "--epochs", "1", "--log", "own:here")
    assert torchsnow(*words, "--json").code == 0
    assert told == [0, 1, 1]


def test_look_alike_classes_that_are_two_stay_two(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    (photos / "green").rename(photos / "Red")
    assert "say so with --distinct-names" in train(photos, *TINY).err
    assert train(photos, *TINY, "--epochs", "1", "--distinct-names").code == 0
    assert set(Hub.open(Path("hub")).info("new").classes) == {"blue", "red", "Red"}
    for verb in ("evaluate", "review"):
        assert torchsnow(verb, photos, "--hub", "hub", "--task", "new").code == 0
