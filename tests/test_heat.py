from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sample_tasks import sample_task
from torchsnow.errors import DeltaError
from torchsnow.heat import heat_map, over_photograph, write_heat_maps
from torchsnow.hub import Hub
from torchsnow.source import FeatureMaps, Source, load_source
from torchsnow.source.grid import Grid
from torchsnow.workflows.predictions import predict_images

HEAD = {"width_divisor": None, "head_last": False, "head_taps": None, "grid_reduction": 16}
GRID = {"width_divisor": None, "grid_width": 8, "grid_blocks": 1, "grid_reduction": 16}


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_what_a_cell_adds_for_a_head_is_what_is_lost_without_it(source: Source) -> None:
    delta = sample_task(source, **HEAD).delta
    heat = heat_map(source, delta, image(), 1)
    request = delta.request(delta.choose())
    ((_, index),) = request.grids.items()
    maps = source(image(), type(request)(grids={16: index})).grids[16].maps
    assert heat.shape == maps.shape[2:] == (4, 4)

    def logit(of: torch.Tensor) -> float:
        with torch.no_grad():
            return float(delta(FeatureMaps(image(), {}, grids={16: Grid.of(index, of)}))[0, 1])

    for row, column in ((0, 0), (1, 3), (2, 2)):
        without = maps.clone()
        without[:, :, row, column] = 0
        assert float(heat[row, column]) == pytest.approx(logit(maps) - logit(without), abs=1e-4)
    assert float(heat.sum()) == pytest.approx(logit(maps) - logit(torch.zeros_like(maps)), abs=1e-4)


@pytest.mark.parametrize("shape", [GRID, {**HEAD, "head_std": True}, {**GRID, "head_std": True}])
def test_bodies_and_deviations_have_a_map_of_their_gradient(source: Source, shape: Mapping[str, Any]) -> None:
    heat = heat_map(source, sample_task(source, **shape).delta, image(), 0)
    assert heat.shape == (4, 4)
    assert heat.isfinite().all()
    assert heat.std() > 0


def test_a_narrow_copy_has_none(source: Source) -> None:
    with pytest.raises(DeltaError, match="there is no heat map"):
        heat_map(source, sample_task(source).delta, image(), 0)


def test_what_speaks_for_the_class_is_red_and_against_it_blue(source: Source) -> None:
    heat = torch.zeros(4, 4)
    heat[0, 0], heat[3, 3] = 2.0, -2.0
    shown = np.asarray(over_photograph(torch.zeros(1, 3, 64, 64), heat, source.input_config)).astype(int)
    assert shown.shape == (448, 448, 3)
    assert shown[56, 56, 0] > shown[56, 56, 2] + 80
    assert shown[392, 392, 2] > shown[392, 392, 0] + 80
    assert np.ptp(shown[224, 56]) < 25  # no heat: grey


def test_a_picture_for_every_prediction(source: Source, tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(sample_task(source, "grid", **GRID))
    hub.add(sample_task(source, "copy"))
    files = []
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(tmp_path / name)
        files.append(tmp_path / name)
    found = list(predict_images(hub, files, None, lambda path, why: None))
    written, refused = write_heat_maps(
        hub, [(one.image, one.task, one.label) for one in found], tmp_path / "heat", lambda done, total: None
    )
    assert [file.name for file in written] == ["0001-x.grid.png", "0002-x.grid.png"]
    assert sorted((tmp_path / "heat").iterdir()) == sorted(written)
    assert list(refused) == ["copy"]
