"""What the server's processes do with Pillow alone is what evaluation does."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from torchsnow.data import eval_transform
from torchsnow.data.cuts import cut
from torchsnow.data.transforms import cut_of, scale
from torchsnow.errors import DataError
from torchsnow.source.config import CROP_MODES, Framing, InputConfig

NAMES = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


def config_of(interpolation: str, crop_pct: float) -> InputConfig:
    return InputConfig((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), interpolation, crop_pct)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 48),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 0.965, 1.0]),
    interpolation=st.sampled_from(NAMES),
    crop_mode=st.sampled_from(CROP_MODES),
)
def test_cut_and_scaled_is_evaluation(
    width: int, height: int, size: int, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    config, framing = config_of(interpolation, crop_pct), Framing(size, crop_mode)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    pixels = pil_to_tensor(cut(image, cut_of(config, framing)))
    assert torch.equal(scale(config)(pixels), eval_transform(config, framing)(image))


def test_what_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="at least 1 pixel"):
        cut_of(config_of("bilinear", 1.0), Framing(0))
    with pytest.raises(DataError, match="unknown interpolation 'sharp'"):
        cut_of(config_of("sharp", 1.0), Framing(32))


def test_reading_and_cutting_pictures_does_not_load_torch() -> None:
    code = "import sys, torchsnow.data.images, torchsnow.data.cuts; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("[]\n", "")
