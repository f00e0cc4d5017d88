from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Trained, refused, snapshot, torchsnow

from sample_tasks import sample_task
from torchsnow.hub import Hub


def test_list(pristine: Trained) -> None:
    outcome = torchsnow("hub", "list", "--hub", pristine.hub)
    assert (outcome.code, outcome.err) == (0, "")
    first, head, row = outcome.out.splitlines()
    assert first.startswith("source: test_resnet (weights random, fingerprint ")
    assert first.endswith("; tasks: 1")
    assert head.split() == ["task", "classes", "size", "added", "version", "former"]
    assert row.split()[:2] == ["colours", "3"]
    assert row.split()[-1] == "0"

    document = torchsnow("hub", "list", "--hub", pristine.hub, "--json").document
    assert document["source"]["name"] == "test_resnet"
    assert document["tasks"]["colours"]["size_bytes"] == pristine.printed["size_bytes"]
    assert document["tasks"]["colours"]["num_classes"] == 3
    assert document["tasks"]["colours"]["former"] == []
    assert document["removed"] == {}


def test_show(pristine: Trained) -> None:
    outcome = torchsnow("hub", "show", "colours", "--hub", pristine.hub)
    assert (outcome.code, outcome.err) == (0, "")
    assert "blue, green, red" in outcome.out
    assert f"test {100 * pristine.printed['test_accuracy']:.1f}%" in outcome.out

    document = torchsnow("hub", "show", "colours", "--hub", pristine.hub, "--json").document
    assert (document["name"], document["classes"]) == ("colours", ["blue", "green", "red"])
    assert document["spec"]["head_divisor"] >= 4
    assert document["training"]["epochs"] == 2
    assert document["metrics"]["test"]["accuracy"] == pristine.printed["test_accuracy"]
    assert document["subscription"]["head"] > 0
    assert document["sha256"] == Hub.open(pristine.hub).infos()["colours"].sha256
    assert f"{document['sha256'][:12]}, added" in outcome.out
    assert document["former"] == []


def test_a_task_of_very_many_classes_is_shown_in_a_few_words(trained: Trained) -> None:
    hub = Hub.open(trained.hub)
    hub.add(sample_task(hub.source, "many", num_classes=10_000, head_divisor=64))
    outcome = torchsnow("hub", "show", "many", "--hub", trained.hub)
    assert (outcome.code, outcome.err) == (0, "")
    assert "kind 18, kind 19 and 9980 more" in outcome.out
    assert len(outcome.out) < 2000
    assert len(torchsnow("hub", "show", "many", "--hub", trained.hub, "--json").document["classes"]) == 10_000


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_remove(trained: Trained, words: list[str]) -> None:
    outcome = torchsnow("hub", "remove", "colours", "--hub", trained.hub, *words)
    assert (outcome.code, outcome.err) == (0, "")
    if words:
        assert outcome.document == {"removed": "colours"}
    assert Hub.open(trained.hub).names() == []
    assert torchsnow("hub", "list", "--hub", trained.hub, "--json").document["tasks"] == {}
    assert torchsnow("hub", "verify", "--hub", trained.hub).code == 0


def test_a_task_goes_and_comes_back(trained: Trained) -> None:
    hub = Hub.open(trained.hub)
    old = hub.infos()["colours"].sha256
    hub.add(replace(hub.task("colours"), image_size=16), replace=True)
    new = hub.infos()["colours"].sha256
    words = ("--hub", trained.hub, "--json")
    listed = torchsnow("hub", "list", *words).document["tasks"]["colours"]
    assert (listed["sha256"], listed["former"]) == (new, [old])
    shown = torchsnow("hub", "show", "colours", *words).document
    assert (shown["sha256"], shown["former"], shown["image_size"]) == (new, [old], 16)

    outcome = torchsnow("hub", "rollback", "colours", "--hub", trained.hub)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"colours is version {old[:12]}, added 2")
    assert torchsnow("hub", "show", "colours", *words).document["sha256"] == old

    torchsnow("hub", "remove", "colours", "--hub", trained.hub)
    assert torchsnow("hub", "list", *words).document["removed"] == {"colours": [old, new]}
    assert torchsnow("hub", "list", "--hub", trained.hub).out.endswith("removed, and kept until gc: colours\n")
    document = torchsnow("hub", "rollback", "colours", *words).document
    assert document == {"task": "colours", **vars(hub.infos()["colours"])}
    assert document["sha256"] == old
    assert torchsnow("hub", "verify", "--hub", trained.hub).out == "tasks: 1; former versions: 1; problems: 0\n"


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_gc_says_what_it_deleted_and_what_not(trained: Trained, words: list[str]) -> None:
    hub = Hub.open(trained.hub)
    size_bytes = hub.infos()["colours"].size_bytes
    hub.add(replace(hub.task("colours"), image_size=16), replace=True)
    (trained.hub / "stray.txt").touch()
    outcome = torchsnow("hub", "gc", "--hub", trained.hub, *words)
    assert outcome.code == 0
    if words:
        left_alone = [str(trained.hub / "stray.txt")]
        assert outcome.document == {"files": 1, "size_bytes": size_bytes, "left_alone": left_alone}
    else:
        assert outcome.out == f"deleted files: 1; {size_bytes / 1e6:.2f} MB\n"
        assert outcome.err == f"left alone: {trained.hub / 'stray.txt'} is no part of the hub\n"
    assert "has no former version" in refused("hub", "rollback", "colours", "--hub", trained.hub)


def test_verify_finds_nothing_in_a_sound_hub(pristine: Trained) -> None:
    outcome = torchsnow("hub", "verify", "--hub", pristine.hub)
    assert (outcome.code, outcome.out, outcome.err) == (0, "tasks: 1; former versions: 0; problems: 0\n", "")
    assert torchsnow("hub", "verify", "--hub", pristine.hub, "--json").document == {"problems": []}


def test_verify_names_every_problem_and_exits_with_2(trained: Trained) -> None:
    (file,) = (trained.hub / "tasks" / "colours").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (trained.hub / "stray.txt").touch()
    outcome = torchsnow("hub", "verify", "--hub", trained.hub)
    assert outcome.code == 2
    damaged, stray, count = outcome.out.splitlines()
    assert "task 'colours'" in damaged
    assert "its SHA-256 is" in damaged
    assert "stray.txt is no part of the hub" in stray
    assert count == "tasks: 1; former versions: 0; problems: 2"

    outcome = torchsnow("hub", "verify", "--hub", trained.hub, "--json")
    assert outcome.code == 2
    assert [problem["task"] for problem in outcome.document["problems"]] == ["colours", None]


@pytest.mark.parametrize(
    "verb",
    [["list"], ["show", "colours"], ["remove", "colours"], ["rollback", "colours"], ["gc"], ["verify"]],
    ids="-".join,
)
def test_what_is_no_hub_is_refused(verb: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a hub" in refused("hub", *verb, "--hub", tmp_path)
    assert "is not a hub" in refused("hub", *verb, "--hub", tmp_path / "none", "--json")
    assert "file is not a hub" in refused("hub", *verb, "--hub", tmp_path / "file")
    assert "File name too long" in refused("hub", *verb, "--hub", "x" * 300)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize("verb", ["show", "remove", "rollback"])
@pytest.mark.parametrize("name", ["colour", "../tasks/colours", ""])
def test_an_unknown_task_is_refused(trained: Trained, verb: str, name: str) -> None:
    before = snapshot(trained.hub)
    assert f"has no task {name!r}" in refused("hub", verb, name, "--hub", trained.hub)
    assert snapshot(trained.hub) == before


@pytest.mark.parametrize("file", ["index.json", "source.json"])
@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 99}', "\udcff"])
def test_a_damaged_hub_is_refused(trained: Trained, file: str, text: str) -> None:
    (trained.hub / file).write_bytes(text.encode(errors="surrogateescape"))
    for verb in (["list"], ["verify"], ["remove", "colours"], ["rollback", "colours"], ["gc"]):
        assert file in refused("hub", *verb, "--hub", trained.hub)


def test_a_hub_elsewhere_is_read_and_never_written(pristine: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHSNOW_HUBS", "copies")
    url = pristine.hub.as_uri()
    listed = torchsnow("hub", "list", "--hub", url, "--json").document
    assert listed == torchsnow("hub", "list", "--hub", pristine.hub, "--json").document
    assert torchsnow("hub", "verify", "--hub", url).code == 0
    photo = next(pristine.photos.rglob("*.png"))
    assert torchsnow("predict", photo, "--hub", url).out == torchsnow("predict", photo, "--hub", pristine.hub).out
    before = snapshot(pristine.hub)
    for words in (("hub", "remove", "colours"), ("hub", "gc"), ("pull", "me/hub"), ("train", pristine.photos)):
        assert "can only be read" in refused(*words, "--hub", url)
    assert snapshot(pristine.hub) == before
