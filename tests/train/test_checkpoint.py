from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from torchsnow.errors import TrainingError
from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.history import Epoch

CONFIG = {"training": {"lr": 0.1, "epochs": 3}, "data": {"fingerprint": "ab" * 32}}


def checkpoint() -> Checkpoint:
    return Checkpoint(
        config=CONFIG,
        model={"conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last), "count": torch.tensor(7)},
        optimizer={"0.exp_avg": torch.randn(4)},
        history=[Epoch(1, 0.1, 1 / 3, 0.3, 0.4, 1e-3, 100.0, 2.0)],
        selection=[{"epoch": 1, "tap": "conv", "sigma": 0.1}],
    )


def test_round_trip(tmp_path: Path) -> None:
    saved = checkpoint()
    saved.save(tmp_path / "last.safetensors")
    loaded = Checkpoint.load(tmp_path / "last.safetensors")
    assert (loaded.config, loaded.history, loaded.selection) == (CONFIG, saved.history, saved.selection)
    for then, now in ((saved.model, loaded.model), (saved.optimizer, loaded.optimizer)):
        assert then.keys() == now.keys()
        assert all(torch.equal(then[key], now[key]) for key in then)


def test_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    checkpoint().save(folder / "last.safetensors")
    assert Checkpoint.load(folder / "last.safetensors").config == CONFIG


@pytest.mark.parametrize("size_bytes", [0, 5, 60, 400, -1])
def test_damage_is_one_sentence(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:size_bytes])
    with pytest.raises(TrainingError, match="cannot read the checkpoint"):
        Checkpoint.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot read the checkpoint"):
        Checkpoint.load(tmp_path / "last.safetensors")


def test_other_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    saved = checkpoint()
    saved.validate_same_config(CONFIG, tmp_path)
    with pytest.raises(TrainingError, match=r"started with training.lr = 0.1, not 0.2;"):
        saved.validate_same_config({**CONFIG, "training": {"lr": 0.2, "epochs": 3}}, tmp_path)
    with pytest.raises(TrainingError, match=r"training.lr = 0.1, not None \(and 2 more\)"):
        saved.validate_same_config({"training": {"epochs": 4}, "data": {"fingerprint": "cd"}}, tmp_path)
