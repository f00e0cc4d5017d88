"""Bad input at the command line: one clear sentence, exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from command_line import TINY, Trained, refused, snapshot, torchsnow
from PIL import Image
from safetensors.torch import load_file

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.delta import Delta, DeltaSpec
from torchsnow.errors import DeltaError
from torchsnow.hub import Hub
from torchsnow.hub.folder import Entry, Index
from torchsnow.source import load_source
from torchsnow.task_file import content_hash, encode_task

Words = tuple[str | Path, ...]


def refused_training(trained: Trained, data: str | Path, *words: str | Path, task: str = "new") -> str:
    """The sentence that refuses to train a task for an existing hub; nothing may have changed."""
    before = snapshot(trained.hub, trained.run)
    sentence = refused("train", data, "--task", task, "--hub", trained.hub, *TINY, "--epochs", "1", *words)
    assert snapshot(trained.hub, trained.run) == before
    assert not Path("runs").exists()
    return sentence


# data


def test_no_such_folder(trained: Trained) -> None:
    for data in ("nowhere", "", "photos.zip"):
        sentence = refused_training(trained, data)
        assert data in sentence
        assert "folder of class folders" in sentence


def test_no_such_name(trained: Trained) -> None:
    assert "did you mean cifar10?" in refused_training(trained, "torchvision:CIFAR1O")
    assert "expected hf:ORGANISATION/NAME" in refused_training(trained, "hf:../photos")


def test_an_empty_class(trained: Trained, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "yellow").mkdir()
    assert f"the class folder {photos / 'yellow'} holds no images" in refused_training(trained, photos)


def test_one_class_only(trained: Trained, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", classes=("red",))
    assert "photos has only the class 'red': a task needs at least two" in refused_training(trained, photos)


def test_no_class_at_all(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert "photos holds no class folders" in refused_training(trained, tmp_path / "photos")


@pytest.mark.parametrize("count", [1, 2])
def test_a_class_with_fewer_images_than_splits(trained: Trained, tmp_path: Path, count: int) -> None:
    photos = make_photos(tmp_path / "photos")
    for number in range(count, 10):
        (photos / "green" / f"{number}.png").unlink()
    sentence = refused_training(trained, photos)
    assert f"the class 'green' has {count} image" in sentence
    assert "leave none to train on" in sentence


def enormous(path: Path) -> None:
    """A PNG of a few bytes that promises 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated.png": (truncated, "damaged or truncated"),
    "zero-byte.jpg": (Path.touch, "the file is empty"),
    "enormous.png": (enormous, "30000 x 30000 pixels are more than the 50,000,000 allowed"),
    "a-text.png": (lambda path: path.write_text("hello") and None, "not an image in a format that is read"),
}
USABLE: dict[str, Callable[[Path], None]] = {
    "cmyk.jpg": lambda path: Image.new("CMYK", (40, 40), (0, 200, 200, 0)).save(path),
    "16-bit.png": lambda path: Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(path),
    "palette.png": lambda path: Image.new("RGB", (40, 40), "red").quantize(8).save(path),
    "animated.gif": lambda path: Image.new("RGB", (40, 40), "red").save(
        path, save_all=True, append_images=[Image.new("RGB", (40, 40), "blue")]
    ),
    "transparent.png": lambda path: Image.new("RGBA", (40, 40), (255, 0, 0, 90)).save(path),
}


def test_odd_images_are_used_and_unusable_ones_named_counted_and_skipped(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", num_images=14)
    for name, make in {**USABLE, **{name: make for name, (make, _) in UNUSABLE.items()}}.items():
        make(photos / "red" / name)
    outcome = torchsnow("train", photos, "--task", "a", "--hub", "hub", *TINY, "--epochs", "1", "--json")
    assert outcome.code == 0, outcome
    assert outcome.document["skipped_images"] == len(UNUSABLE)
    *skipped, count = outcome.err.splitlines()
    assert count == f"{len(UNUSABLE)} of {3 * 14 + len(USABLE) + len(UNUSABLE)} images were skipped"
    for name, (_, reason) in UNUSABLE.items():
        (line,) = [line for line in skipped if str(photos / "red" / name) in line]
        assert reason in line
    used = Path("runs/a/splits.json").read_text()
    assert all(f"red/{name}" in used for name in USABLE)
    assert not any(f"red/{name}" in used for name in UNUSABLE)


def test_odd_images_are_classified_and_unusable_ones_named(trained: Trained, tmp_path: Path) -> None:
    for name, make in {**USABLE, **{name: make for name, (make, _) in UNUSABLE.items()}}.items():
        make(tmp_path / name)
    before = snapshot(trained.hub)
    outcome = torchsnow("predict", *USABLE, *UNUSABLE, "--hub", trained.hub, "--json")
    assert outcome.code == 2
    assert [prediction["image"] for prediction in outcome.document["predictions"]] == list(USABLE)
    for line, (name, (_, reason)) in zip(outcome.err.splitlines(), UNUSABLE.items(), strict=True):
        assert line.startswith(f"torchsnow: cannot read the image {name}: ")
        assert reason in line
    assert snapshot(trained.hub) == before


def test_too_many_unusable_images(trained: Trained, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    for name, (make, _) in UNUSABLE.items():
        make(photos / "red" / name)
    sentence = refused_training(trained, photos)
    assert "4 of 34 files in photos cannot be used, more than 10%" in sentence
    assert str(photos / "red" / "a-text.png") in sentence


def test_a_class_of_unusable_images(trained: Trained, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "yellow").mkdir()
    truncated(photos / "yellow" / "cut.png")
    sentence = refused_training(trained, photos)
    assert "no image of the class 'yellow' in photos can be used" in sentence
    assert str(photos / "yellow" / "cut.png") in sentence


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "red/../../secret.png", "link/secret.png"])
def test_a_table_that_points_outside_its_folder(trained: Trained, tmp_path: Path, path: str) -> None:
    photos = make_photos(tmp_path / "photos")
    Image.new("RGB", (40, 40)).save(tmp_path / "secret.png")
    (photos / "link").symlink_to(tmp_path)
    (photos / "table.csv").write_text(f"path,label\nred/0.png,a\nblue/0.png,b\n{path},a\n")
    sentence = refused_training(trained, photos / "table.csv")
    assert f"row 4: the path {path!r} leaves the folder {photos}" in sentence


def test_a_table_that_is_none(trained: Trained, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    (photos / "table.csv").write_text("file;class\nred/0.png;a\n")
    assert "the first line must be the header path,label" in refused_training(trained, photos / "table.csv")
    (photos / "table.csv").write_text("path,label\nred/0.png,a\nred/gone.png,b\n")
    assert f"do not exist: row 3: {photos / 'red' / 'gone.png'}" in refused_training(trained, photos / "table.csv")


# names and places


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/x", "..", ".hidden", "Upper", "a b", "x" * 65, "a\n"])
def test_a_task_name_that_is_a_path(trained: Trained, name: str) -> None:
    sentence = refused_training(trained, trained.photos, task=name)
    assert f"{name[:80]!r} cannot be a task's name; expected 1 to 64 of a-z" in sentence


def test_a_hub_that_is_something_else(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torchsnow.cli.data_options.load_checked")  # refused before anything slow
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    words = ("train", trained.photos, "--task", "new", *TINY, "--hub")
    assert "full is not empty (it holds 'thesis.txt')" in refused(*words, "full")
    assert "thesis.txt is a file; a hub is a folder" in refused(*words, Path("full") / "thesis.txt")
    assert "thesis.txt is a file; a hub is a folder" in refused(*words, Path("full") / "thesis.txt" / "hub")
    assert "File name too long" in refused(*words, "x" * 300)
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"thesis.txt"}
    assert not Path("runs").exists()


def test_a_run_folder_that_cannot_be_one(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inside = refused_training(trained, trained.photos, "--out", trained.hub / "run")
    assert f"the run folder {trained.hub / 'run'} lies inside the hub {trained.hub}" in inside
    assert "lies inside the hub" in refused_training(trained, trained.photos, "--out", trained.hub)
    assert "cannot write into file: a part of this path is a file" in refused_training(
        trained, trained.photos, "--out", "file"
    )
    assert "File name too long" in refused_training(trained, trained.photos, "--out", "x" * 300)


# sources


@pytest.mark.parametrize(
    "verb",
    [
        *(("hub", "list"), ("hub", "show", "a"), ("serve",), ("suggest", "."), ("evaluate", ".", "--task", "a")),
        *(("review", ".", "--task", "a"), ("visualize", "--task", "a", "--out", "o"), ("export", "--out", "o.onnx")),
        ("predict", "."),
    ],
    ids=" ".join,
)
def test_the_hub_is_the_folder_hub_unless_another_is_named(
    verb: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").touch()
    assert "hub is not a hub: it has no source.json" in refused(*verb)


def test_a_hub_on_another_source(trained: Trained) -> None:
    def words(*more: str) -> Words:
        return "train", trained.photos, "--task", "new", "--hub", trained.hub, "--image-size", "32", *more

    before = snapshot(trained.hub)
    other = refused(*words("--source", "test_efficientnet"))  # known by its name: nothing is downloaded
    assert f"the hub {trained.hub} is on another source: test_resnet (weights random" in other
    assert "not test_efficientnet" in other
    file = trained.photos.parent / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    assert "they differ in weights" in refused(*words("--weights", str(file)))
    assert "did you mean test_resnet" in refused(*words("--source", "test_resnot"))
    assert snapshot(trained.hub) == before
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("resnet81", r"timm has no model 'resnet81'; did you mean resnet"),
        ("test_resnet.best", "test_resnet has no weights 'best'; timm has: "),
        ("cait_xxs24_224", "cait_xxs24_224 cannot be a source: it is a vision transformer"),
        ("halonet26t", "halonet26t cannot be a source: it is a hybrid of convolution and attention"),
        ("mixer_s32_224", "mixer_s32_224 cannot be a source: it is an MLP mixer"),
        ("bundled", "the source 'bundled' has weights of its own"),
    ],
)
def test_a_source_that_cannot_be_one(photos: Path, source: str, sentence: str) -> None:
    words = ("train", photos, "--task", "new", "--hub", "hub", "--source", source, "--weights", "random")
    assert sentence in refused(*words)
    assert not Path("hub").exists()
    assert not Path("runs").exists()


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once."""
    create = timm.create_model

    def create_offline(name: str, pretrained: bool = False, **settings: Any) -> Any:
        if pretrained:
            raise ConnectionError("no route\nto host")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", create_offline)


@pytest.mark.usefixtures("_offline")
def test_a_source_that_cannot_be_downloaded(photos: Path) -> None:
    sentence = refused("train", photos, "--task", "new", "--hub", "hub", "--source", "resnet18")
    assert "the weights of 'resnet18' could not be downloaded (ConnectionError)" in sentence
    assert "download model.safetensors of timm/resnet18 on another machine" in sentence
    assert "'bundled'" in sentence
    assert not Path("hub").exists()
    assert not Path("runs").exists()


@pytest.mark.usefixtures("_offline")
def test_a_hub_whose_source_cannot_be_downloaded(trained: Trained) -> None:
    file = trained.hub / "source.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights": "pretrained"}))
    image = trained.photos / "red" / "0.png"
    for words in (("predict", image), ("evaluate", trained.photos, "--task", "colours"), ("hub", "verify")):
        sentence = refused(*words, "--hub", trained.hub)
        assert "source test_resnet (weights pretrained" in sentence
        assert "could not be downloaded" in sentence


def test_a_weight_file_that_is_none(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps({"a": 1}))
    words = ("train", photos, "--task", "new", "--hub", "hub", "--source", "test_resnet", "--weights")
    assert "no weight file gone.safetensors" in refused(*words, "gone.safetensors")
    assert "w.safetensors is not a readable .safetensors file" in refused(*words, "w.safetensors")


# task files


def put(hub: Path, name: str, content: bytes) -> None:
    """Make a file a task of the hub, as somebody would who copies files and mends the index."""
    entry = Entry(content_hash(content), len(content), 3, "2026-01-01T00:00:00+00:00")
    folder = hub / "tasks" / name
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / f"{entry.sha256}.safetensors").write_bytes(content)
    opened = Hub.open(hub)
    opened.folder.write_index(Index(99, {**opened.infos(), name: entry}))


def of_another_source(content: bytes) -> bytes:
    del content
    return encode_task(sample_task(load_source("test_efficientnet", weights="random"), "colours"))


def with_nan(content: bytes) -> bytes:
    size_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size_bytes])
    start, _ = header["head.center"]["data_offsets"]
    place = 8 + size_bytes + start
    return content[:place] + struct.pack("<f", float("nan")) + content[place + 4 :]


def with_an_extra_key(content: bytes) -> bytes:
    size_bytes = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size_bytes])["__metadata__"]
    tensors = safetensors.torch.load(content)
    return bytes(safetensors.torch.save({**tensors, "backdoor": torch.zeros(1)}, metadata))


class Bomb:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another source": (of_another_source, "it belongs to another source: test_efficientnet"),
    "truncated": (lambda content: content[:-10], "not a readable .safetensors file"),
    "empty": (lambda content: b"", "not a .safetensors file"),
    "NaN": (with_nan, "holds 1 NaN or infinite numbers"),
    "extra key": (with_an_extra_key, "it has an unknown tensor 'backdoor'"),
    "pickle": (lambda content: pickle.dumps(Bomb()), "a Python pickle; it is never unpickled"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_task_file_that_cannot_be_used(trained: Trained, damage: str) -> None:
    spoil, reason = DAMAGES[damage]
    (file,) = (trained.hub / "tasks" / "colours").iterdir()
    put(trained.hub, "bad", spoil(file.read_bytes()))
    before = snapshot(trained.hub)
    image = trained.photos / "red" / "0.png"
    for words in (("predict", image), ("evaluate", trained.photos)):
        sentence = refused(*words, "--task", "bad", "--hub", trained.hub, "--json")
        assert "task 'bad'" in sentence
        assert reason in sentence
    verified = torchsnow("hub", "verify", "--hub", trained.hub, "--json")
    assert verified.code == 2
    (problem,) = verified.document["problems"]
    assert problem["task"] == "bad"
    assert reason in problem["message"]
    assert torchsnow("predict", image, "--task", "colours", "--hub", trained.hub).code == 0
    assert snapshot(trained.hub) == before
    assert not Path("exploded").exists()


def test_a_task_file_that_was_changed_or_lost(trained: Trained) -> None:
    (file,) = (trained.hub / "tasks" / "colours").iterdir()
    image = trained.photos / "red" / "0.png"
    file.write_bytes(with_nan(file.read_bytes()))
    assert "damaged: its SHA-256 is" in refused("predict", image, "--hub", trained.hub)
    file.unlink()
    assert "no such file" in refused("predict", image, "--hub", trained.hub)
    assert "no such file" in refused("hub", "show", "colours", "--hub", trained.hub)


# settings


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch-size", "1"], "batch_size is 1, and batch normalisation cannot estimate a variance from one image"),
        (["--batch-size", "0"], "batch_size is 0; expected a whole number of 2 or more"),
        (["--epochs", "0"], "epochs is 0; expected a whole number of 1 or more"),
        (["--image-size", "0"], "image_size is 0; expected a whole number of 1 or more"),
        (["--image-size", "8000"], "image_size is 8000; expected 1024 pixels or fewer"),
        (["--image-size", "31"], "the images have 31 x 31 pixels, less than the 32 x 32 of one cell of the grid"),
        (["--lr", "nan"], "lr is nan; expected a number above 0"),
        (["--lr", "-1"], "lr is -1.0; expected a number above 0"),
        (["--label-smoothing", "1"], "label_smoothing is 1.0; expected 0 or more and less than 1"),
        (["--optimizer", "adam"], "optimizer is 'adam'; expected one of adamw, sgd"),
        (["--class-weights", "some"], "class_weights is 'some'; expected one of none, balanced"),
        (["--augmentation", "wild"], "augmentation is 'wild'; expected one of none, flip, light, strong"),
        (["--precision", "fp8"], "precision is 'fp8'; expected one of fp32, bf16"),
        (["--device", "tpu"], "device is 'tpu'; expected one of auto, cpu, cuda"),
        (["--patience", "0"], "patience is 0; expected None or a whole number from 1"),
        (["--seed", "-1"], "seed is -1; expected a whole number of 0 or more"),
        (["--num-workers", "-1"], "num_workers is -1; expected a whole number of 0 or more"),
        (["--method", "magic"], "there is no method 'magic'; expected one of full, features"),
        (["--preset", "best"], "the method 'snow' has no preset 'best'; expected one of default, small"),
        (["--lr", "1e30"], "the loss is no longer a finite number in epoch"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_a_setting_that_cannot_be(trained: Trained, words: list[str], sentence: str) -> None:
    before = snapshot(trained.hub)
    command = ("train", trained.photos, "--task", "new", "--hub", trained.hub, *TINY, "--epochs", "3", *words)
    assert sentence in refused(*command, "--json")
    began = "1e30" in words  # and so the linear head is in the hub
    assert Hub.open(trained.hub).names() == ["colours", *(["new"] if began else [])]
    assert began or snapshot(trained.hub) == before
    assert Path("runs").exists() == began


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_there_is_not(trained: Trained) -> None:
    assert "torch sees no CUDA device here" in refused_training(trained, trained.photos, "--device", "cuda")


def test_divisors_that_leave_no_channel() -> None:
    for name in ("width_divisor", "pool_divisor", "head_divisor"):
        for divisor in (0, -1, 0.5):
            with pytest.raises(DeltaError, match=f"{name} is {divisor}; expected a whole number of 1 or more"):
                replace(DeltaSpec(2), **{name: divisor})
    source = load_source("test_resnet", weights="random")
    widest = max(tap.num_chs for tap in source.taps.values())
    for name in ("width_divisor", "pool_divisor"):
        with pytest.raises(
            DeltaError, match=rf"{name}=1000 leaves no channel: .* has {widest}; use .* at most {widest}"
        ):
            Delta(source, replace(DeltaSpec(2), **{name: 1000}))


# a full disk


def full_disk(monkeypatch: pytest.MonkeyPatch, file: str, after: int = 0) -> None:
    """The disk is full when a file of this name is to be written, from the second time on if `after` is 1."""
    rename, seen = os.replace, [0]

    def renamed(old: str | Path, new: str | Path) -> None:
        if Path(new).match(file):
            seen[0] += 1
            if seen[0] > after:
                raise OSError(errno.ENOSPC, "No space left on device", str(new))
        rename(old, new)

    monkeypatch.setattr(os, "replace", renamed)


@pytest.mark.parametrize(
    ("file", "after"),
    [
        ("args.yaml", 0),
        ("splits.json", 0),
        ("last.safetensors", 1),
        ("results.csv", 1),
        ("tasks/*/*.safetensors", 0),
        ("hub/index.json", 0),
    ],
)
def test_a_full_disk_loses_nothing(trained: Trained, file: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("train", trained.photos, "--task", "new", "--hub", trained.hub, *TINY, "--epochs", "2")
    tasks = snapshot(trained.hub / "tasks")
    with monkeypatch.context() as patched:
        full_disk(patched, file, after)
        sentence = refused(*command, "--json")
    assert "the disk is full" in sentence or "No space left on device" in sentence
    assert Path(file).name.replace("*", "") in sentence
    assert tasks.items() <= snapshot(trained.hub / "tasks").items()
    staged = after == 1  # the linear head was in the hub by then
    assert Hub.open(trained.hub).names() == ["colours", *(["new"] if staged else [])]
    assert Hub.open(trained.hub).verify() == []
    assert not [path for path in Path().rglob("*") if path.name.endswith(".tmp")]
    if "hub" in file or "tasks" in file:
        assert "The training is not lost: resume the run (--resume) to add its task" in sentence

    begun = Path("runs/new/args.yaml").exists()
    again = torchsnow(*command, *(["--resume"] if begun else []))
    assert again.code == 0, again
    assert Hub.open(trained.hub).names() == ["colours", "new"]
    undisturbed = load_file(trained.run / "best.safetensors")
    resumed = load_file("runs/new/best.safetensors")
    assert all(torch.equal(resumed[key], tensor) for key, tensor in undisturbed.items())


def test_a_full_disk_when_the_hub_is_made(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", trained.photos, "--task", "colours", "--hub", "fresh", *TINY, "--epochs", "2", "--out")
    with monkeypatch.context() as patched:
        full_disk(patched, "fresh/source.json")
        sentence = refused(*words, trained.run, "--resume")
    assert "the disk is full" in sentence
    assert "The training is not lost" in sentence
    assert torchsnow(*words, trained.run, "--resume").code == 0
    assert Hub.open("fresh").verify() == []


def test_a_full_disk_when_a_task_is_removed(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(trained.hub)
    with monkeypatch.context() as patched:
        full_disk(patched, "index.json")
        assert "the disk is full" in refused("hub", "remove", "colours", "--hub", trained.hub)
    assert snapshot(trained.hub) == before
