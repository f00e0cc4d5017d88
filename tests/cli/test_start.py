"""What a verb loads before it works: nothing heavy for a list, a refusal or a help text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchsnow.hub import Hub
from torchsnow.source import load_source

HEAVY = {"torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "pandas"}
DRAWING_AND_FITTING = {"sklearn", "scipy", "matplotlib", "pandas"}

PROBE = """
import sys
from torchsnow.cli import main
sys.argv = ["torchsnow", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded_by(code: str, *words: str) -> tuple[int, set[str]]:
    """The exit code of a fresh process, and the packages that it has loaded at its end."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert "loaded:" in done.stdout, done.stderr
    return done.returncode, set(done.stdout.rpartition("loaded:")[2].split())


@pytest.fixture(scope="module")
def empty_hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.create(tmp_path_factory.mktemp("empty") / "hub", load_source("test_resnet", "random"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("train --help", 0),
        ("hub list --hub HUB", 0),
        ("hub show nothing --hub HUB", 2),
        ("hub remove nothing --hub HUB", 2),
        ("hub rollback nothing --hub HUB", 2),
        ("hub gc --hub HUB", 0),
        ("predict x.jpg --hub NOWHERE", 2),
        ("predict x.jpg --hub HUB --task nothing", 2),
        ("evaluate NOWHERE --hub HUB --task nothing", 2),
        ("train NOWHERE --task new", 2),
        ("train HUB --task new --epochs 0", 2),
        ("train-many NOWHERE --hub HUB --out NOWHERE --batch-size 1", 2),
    ],
)
def test_no_torch_for_lists_and_refusals(words: str, code: int, empty_hub: Hub, tmp_path: Path) -> None:
    places = {"HUB": str(empty_hub.folder.path), "NOWHERE": str(tmp_path / "nowhere")}
    exit_code, loaded = loaded_by(PROBE, *(places.get(word, word) for word in words.split()))
    assert exit_code == code
    assert loaded & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize("room", ["workflows.training", "workflows.shared", "workflows.predictions"])
def test_work_begins_without_drawing_and_fitting(room: str) -> None:
    code = f"import sys, torchsnow.{room}\nprint('loaded:', *sorted(sys.modules))"
    exit_code, loaded = loaded_by(code)
    assert exit_code == 0
    assert "torch" in loaded
    assert loaded & DRAWING_AND_FITTING == set()
