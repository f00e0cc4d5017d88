from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2.functional import pil_to_tensor

from torchsnow.data import AUGMENTATIONS, eval_transform, prepare, read_image, train_transform
from torchsnow.errors import DataError
from torchsnow.source.config import Framing, InputConfig

CONFIG = InputConfig((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875)
CENTER = Framing(64, "center")


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def prepared(photo: Image.Image) -> torch.Tensor:
    return pil_to_tensor(prepare(CONFIG, CENTER)(photo)).contiguous()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize(("image_size", "crop_pct"), [(224, 0.875), (144, 0.875), (160, 0.95), (96, 1.0)])
@pytest.mark.parametrize("portrait", [False, True])
def test_evaluation_is_timms(
    photo: Image.Image, interpolation: str, image_size: int, crop_pct: float, portrait: bool
) -> None:
    config = replace(CONFIG, interpolation=interpolation, crop_pct=crop_pct, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 1.0))
    photo = photo.rotate(90, expand=True) if portrait else photo
    expected = timm.data.create_transform(
        (3, image_size, image_size),
        is_training=False,
        interpolation=interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=crop_pct,
    )(photo)
    framing = Framing(image_size, "center")
    transform = eval_transform(config, framing)
    from_cache = transform(pil_to_tensor(prepare(config, framing)(photo)))
    for result in (transform(photo), from_cache):
        assert result.shape == (3, image_size, image_size)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("augmentation", [None, *AUGMENTATIONS])
def test_squash_makes_a_picture_square_before_it_cuts(photo: Image.Image, augmentation: str | None) -> None:
    framing = Framing(64, "squash")
    square = photo.resize((73, 73), Image.Resampling.BICUBIC)
    assert prepare(CONFIG, framing)(photo).tobytes() == square.tobytes()
    seen = []
    for how, image in ((framing, photo), (Framing(64, "center"), square)):
        torch.manual_seed(0)
        transform = eval_transform(CONFIG, how) if augmentation is None else train_transform(CONFIG, how, augmentation)
        seen.append(transform(image))
    assert torch.equal(*seen)


def test_prepare_keeps_the_aspect_ratio(photo: Image.Image) -> None:
    assert photo.size == (640, 427)
    assert prepare(CONFIG, CENTER)(photo).size == (109, 73)


def test_none_is_evaluation(photo: Image.Image, prepared: torch.Tensor) -> None:
    assert torch.equal(train_transform(CONFIG, CENTER, "none")(prepared), eval_transform(CONFIG, CENTER)(photo))


def test_flip_is_evaluation_or_its_mirror(prepared: torch.Tensor) -> None:
    plain = eval_transform(CONFIG, CENTER)(prepared)
    results = [train_transform(CONFIG, CENTER, "flip")(prepared) for _ in range(40)]
    mirrored = sum(torch.equal(result, plain.flip(-1)) for result in results)
    assert mirrored + sum(torch.equal(result, plain) for result in results) == 40
    assert 5 < mirrored < 35


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_preset_gives_normalised_floats_and_leaves_its_input_alone(
    prepared: torch.Tensor, augmentation: str
) -> None:
    before = prepared.clone()
    transform = train_transform(CONFIG, CENTER, augmentation)
    for _ in range(30):
        result = transform(prepared)
        assert result.shape == (3, 64, 64)
        assert result.dtype == torch.float32
        assert -2.2 < result.min() < result.max() < 2.7
    assert torch.equal(prepared, before)


@pytest.mark.parametrize("augmentation", ["flip", "light", "strong"])
def test_all_randomness_is_torchs(prepared: torch.Tensor, augmentation: str) -> None:
    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        random.seed()
        np.random.seed()
        return torch.stack([train_transform(CONFIG, CENTER, augmentation)(prepared) for _ in range(15)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))


def test_light_crops_and_strong_goes_further(prepared: torch.Tensor) -> None:
    torch.manual_seed(0)
    light = torch.stack([train_transform(CONFIG, CENTER, "light")(prepared) for _ in range(20)])
    assert len({image.sum().item() for image in light}) == 20
    strong = torch.stack([train_transform(CONFIG, CENTER, "strong")(prepared) for _ in range(60)])
    assert strong.mean((1, 2, 3)).std() > 1.5 * light.mean((1, 2, 3)).std()


def test_bad_settings_are_named() -> None:
    with pytest.raises(DataError, match="unknown augmentation 'wild'; expected one of none, flip, light, strong"):
        train_transform(CONFIG, CENTER, "wild")
    with pytest.raises(DataError, match="unknown interpolation 'random'; expected one of nearest,"):
        eval_transform(replace(CONFIG, interpolation="random"), CENTER)
    with pytest.raises(DataError, match="unknown crop mode 'stretch'; expected one of squash, center, border"):
        eval_transform(CONFIG, Framing(64, "stretch"))
    for size in (0, 1025):
        with pytest.raises(DataError, match=f"at least 1 pixel, and at most 1024, not {size}"):
            prepare(CONFIG, Framing(size))


def test_pictures_of_any_mode_give_one_tensor(photo: Image.Image) -> None:
    transform = eval_transform(CONFIG, CENTER)
    expected = transform(photo)
    assert torch.equal(transform(photo.convert("RGBA")), expected)
    assert torch.equal(transform(np.array(photo)), expected)
    assert torch.equal(transform(np.array(photo.convert("RGBA"))), expected)
    grey = photo.convert("L")
    for same in (grey, np.array(grey), np.array(grey).astype(np.uint16) * 257, grey.convert("I;16")):
        assert transform(same).shape == (3, 64, 64)
    assert torch.equal(transform(np.array(grey)), transform(grey.convert("RGB")))
    palette = photo.quantize(16)
    assert torch.equal(transform(palette), transform(palette.convert("RGB")))
    clear = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    assert torch.equal(transform(clear), transform(Image.new("RGB", (80, 80), "white")))


def test_an_image_that_pillow_opened_is_turned_by_its_exif(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.png", exif=exif)
    transform = eval_transform(CONFIG, CENTER)
    with Image.open(tmp_path / "a.png") as image:
        assert torch.equal(transform(image), transform(read_image(tmp_path / "a.png")))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"a uint8 array \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), r"a float32 array \(8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"a uint8 array \(0, 8, 3\)"),
        (np.zeros(8, np.uint8), r"a uint8 array \(8,\)"),
        (torch.zeros(3, 8, 8), r"a float32 tensor \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"a uint8 tensor \(1, 8, 8\)"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"a uint8 tensor \(4, 8, 8\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"a uint8 tensor \(8, 8\)"),
        ("photo.png", "a str"),
    ],
)
def test_what_is_no_picture_is_refused(given: object, named: str) -> None:
    for transform in (eval_transform(CONFIG, CENTER), train_transform(CONFIG, CENTER, "light")):
        with pytest.raises(DataError, match=f"was given {named}; expected a PIL image"):
            transform(given)
