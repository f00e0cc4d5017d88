"""What a result depends on, as one hash: a result with another key is another result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_OF_RESULTS = ("source", "pooling.py", "delta", "model.py", "data", "train", "methods", "experiments/cell.py")
_LIBRARIES = ("torch", "torchvision", "timm", "scikit-learn")


@cache
def code_digest() -> str:
    """A SHA-256 over the code that trains and tests, as it was when first asked, and the versions of what it uses."""
    digest = hashlib.sha256()
    for name in _OF_RESULTS:
        path = _PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(_PACKAGE).as_posix()} {content}\n".encode())
    digest.update(" ".join(f"{name} {version(name)}" for name in _LIBRARIES).encode())
    return digest.hexdigest()


def result_key(depends_on: Mapping[str, Any]) -> str:
    """A SHA-256 over JSON values that a result depends on, and over the code."""
    text = json.dumps({"code": code_digest(), **depends_on}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
