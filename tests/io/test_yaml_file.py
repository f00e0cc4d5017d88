from __future__ import annotations

import time
from pathlib import Path

import pytest

from torchsnow.errors import ExperimentError
from torchsnow.io.yaml_file import read_yaml

BILLION = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
HOSTILE = {
    "5,000 brackets": "a: " + "[" * 5_000 + "]" * 5_000,
    "open brackets": "[" * 5_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(1_000)),
    "nested aliases": BILLION,
    "a value in itself": "&a [*a]",
    "a number without end": "a: " + "1" * 5_000,
    "a day that there is not": "a: 2020-13-45",
    "an object of Python": "a: !!python/object/apply:os.system [ls]",
    "no text": "a: \x00",
    "a list as a name": "? [a]\n: b",
    "too long": "a: " + "x" * 2**20,
    "an unknown alias": "a: *b",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_nobody_writes_is_refused_in_little_time(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    start_s = time.thread_time()
    with pytest.raises(ExperimentError, match=r"x\.yaml") as refused:
        read_yaml(tmp_path / "x.yaml", ExperimentError)
    assert time.thread_time() - start_s < 1
    assert len(str(refused.value)) < 1_000


def test_what_people_write_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("base: &base {lr: 0.1}\nruns: [*base, {<<: *base, seed: 1}]\n")
    assert read_yaml(tmp_path / "x.yaml", ExperimentError) == {
        "base": {"lr": 0.1},
        "runs": [{"lr": 0.1}, {"lr": 0.1, "seed": 1}],
    }
    (tmp_path / "x.yaml").write_text("")
    assert read_yaml(tmp_path / "x.yaml", ExperimentError) is None


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x80"])
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ExperimentError, match="not a YAML file"):
        read_yaml(tmp_path / "x.yaml", ExperimentError)
