"""How a source wants its images: size, normalisation and interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import floor
from typing import Any, Literal, NamedTuple

MAX_IMAGE_SIZE = 1024
"""Height and width in pixels, of images for training, in a task file and in an export. Beyond it one image takes a
server's memory and seconds, and all tasks wait for it."""
CROP_MODES = ("squash", "center", "border")
GREYS = (0, 65_535)
"""All values of a 16-bit grey."""
Channels = tuple[float, float, float]
"""A number for red, green and blue."""
Precision = Literal["fp32", "bf16"]


class Framing(NamedTuple):
    """How a picture becomes the square of `image_size` pixels a side that a source sees.

    A side is resized to `resize_size` pixels, a little more than the square's, which is then cut out of the middle.
    With `crop_mode` "squash" both sides are, so that little of a picture is lost, whatever its shape; with "center" the
    shorter side is; with "border" the longer side is, and a border in the source's mean colour makes it a square. All
    are timm's at evaluation, under the same names. Of 16-bit greys, `grey_range` are the values that become black and
    white.
    """

    image_size: int
    crop_mode: str = CROP_MODES[0]
    grey_range: tuple[int, int] = GREYS

    def __str__(self) -> str:
        greys = "" if self.grey_range == GREYS else ", greys {} to {}".format(*self.grey_range)
        return f"{self.image_size} px, {self.crop_mode}{greys}"

    def resize_size(self, crop_pct: float) -> int:
        """Pixels of a side before the cut, of which the square keeps the share `crop_pct`."""
        return floor(self.image_size / crop_pct)


@dataclass(frozen=True)
class InputConfig:
    """The preprocessing that a source was trained with, in timm's terms.

    `input_size` is (channels, height, width) in pixels; `mean` and `std` are per channel, for pixels in 0..1;
    `crop_pct` is the share of the resized image that the centre crop keeps.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> InputConfig:
        """Build from timm's data config or from JSON (lists become tuples)."""
        channels, height, width = (int(v) for v in values["input_size"])
        red, green, blue = (float(v) for v in values["mean"])
        red_std, green_std, blue_std = (float(v) for v in values["std"])
        return cls(
            (channels, height, width),
            (red, green, blue),
            (red_std, green_std, blue_std),
            str(values["interpolation"]),
            float(values["crop_pct"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
