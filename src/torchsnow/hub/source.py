"""Which source a hub has, or a new one gets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchsnow.errors import HubError
from torchsnow.hub.folder import SOURCE_FILE
from torchsnow.hub.hub import Hub
from torchsnow.hub.remote import url_of
from torchsnow.io.files import clear_os_errors
from torchsnow.source.config import Channels, Precision
from torchsnow.source.packages import BUNDLED, PACKAGES

if TYPE_CHECKING:
    from torchsnow.source import Source


def source_for(
    hub_path: Path | None,
    name: str | None,
    weights: str | None,
    precision: Precision | None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Source:
    """The source of a hub; for a new hub, or none, the named one, by default the bundled one with its weights in fp32.

    What is given for an existing hub must fit it, and what is not given is the hub's. Raises HubError when the hub is
    on another source; where the names alone tell, before anything is downloaded.
    """
    from torchsnow.source import load_source

    if hub_path is None or not is_hub(hub_path):
        return load_source(name or BUNDLED, weights or "pretrained", precision or "fp32", mean, std)
    hub = Hub.open(hub_path)
    if name is not None:
        from torchsnow.source.load import timm_name

        name = timm_name(name)
    info = hub.source_info
    packaged = info.weights in PACKAGES
    own_name, own_weights = (info.weights, "pretrained") if packaged else (info.name, info.weights)
    if (name, weights, mean, std) == (None,) * 4 and precision in (None, info.precision):
        return hub.source
    if name is None or name == own_name:
        mean, std = mean or info.input_config.mean, std or info.input_config.std
    else:
        _validate_architecture(hub, name)
        own_name, own_weights = name, "pretrained"
    source = load_source(own_name, weights or own_weights, precision or info.precision, mean, std)
    return Hub.open(hub_path, source).source


def _validate_architecture(hub: Hub, name: str) -> None:
    from torchsnow.source.load import validate_source_name

    if name not in PACKAGES:
        validate_source_name(name)
    if name in PACKAGES or name.partition(".")[0] != hub.source_info.name.partition(".")[0]:
        raise HubError(
            f"the hub {hub.folder.path} is on another source: {hub.source_info}, not {name}; "
            "choose another hub, or name no source to use the hub's"
        )


def is_hub(path: Path) -> bool:
    """Whether a folder is a hub, or names one elsewhere. Raises HubError when the system does not let us look."""
    if url_of(path) is not None:
        return True
    with clear_os_errors("look at", path, HubError):
        return (path / SOURCE_FILE).exists()
