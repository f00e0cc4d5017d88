"""What Core ML does where it does not exist: as a package is written, `test_export.py` sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchsnow.export.coreml import load_coreml
from torchsnow.export.quiet import silence


def test_a_package_is_run_by_names_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with silence():
        coremltools = pytest.importorskip("coremltools")

    class Model:
        def __init__(self, path: str, compute_units: Any) -> None:
            assert (path, compute_units) == ("a.mlpackage", coremltools.ComputeUnit.CPU_ONLY)

        def predict(self, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            assert (list(data), data["images"].dtype) == (["images"], np.float32)
            return {"screws": data["images"].mean((2, 3))}

    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    images = torch.rand(2, 3, 8, 8)
    given = load_coreml(Path("a.mlpackage"))(images)
    torch.testing.assert_close(given["screws"], images.mean((2, 3)))
