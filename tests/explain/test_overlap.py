from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from torchsnow.explain.figures import overlap_figure
from torchsnow.explain.subscriptions import TapSubscription, overlap_of


def tap(name: str, num_chs: int, *index: int) -> TapSubscription:
    ones = torch.ones(len(index))
    return TapSubscription(name, num_chs, torch.tensor(index), ones, ones)


def test_a_case_by_hand() -> None:
    first = [tap("a", 8, 0, 1), tap("b", 4, 0, 1, 2)]
    second = [tap("a", 8, 1, 2), tap("b", 4, 3)]
    overlap = overlap_of({"x": first, "y": second}, ["a", "b"])
    np.testing.assert_allclose(overlap.observed, [[1, 1 / 7], [1 / 7, 1]])
    expected = 2 * 2 / 8 + 3 * 1 / 4
    np.testing.assert_allclose(overlap.by_chance[0, 1], expected / (8 - expected))
    assert np.isnan(overlap.by_chance[0, 0])
    np.testing.assert_allclose(overlap.tap_observed, [1 / 3, 0])
    np.testing.assert_allclose(overlap.tap_by_chance, [0.5 / 3.5, 0.75 / 3.25])
    document = json.loads(json.dumps(overlap.to_dict(), allow_nan=False))
    assert document["by_chance"][0][0] is None


def test_taps_that_one_task_alone_reads() -> None:
    overlap = overlap_of({"x": [tap("a", 8, 0)], "y": [tap("a", 8, 0), tap("c", 8, 1)]}, ["c", "a"])
    assert overlap.taps == ("c", "a")
    assert np.isnan(overlap.tap_observed[0])
    assert overlap.tap_observed[1] == 1
    assert overlap.observed[0, 1] == 0.5


def test_chance_is_what_random_tasks_have() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> list[TapSubscription]:
        sizes = {"a": (64, 8), "b": (256, 64)}
        return [tap(name, n, *torch.randperm(n, generator=generator)[:m].tolist()) for name, (n, m) in sizes.items()]

    overlap = overlap_of({str(i): drawn() for i in range(30)}, ["a", "b"])
    pairs = ~np.eye(30, dtype=bool)
    assert overlap.observed[pairs].mean() == pytest.approx(overlap.by_chance[pairs].mean(), rel=0.03)


def test_matrices_hold_the_numbers_and_share_a_scale() -> None:
    tasks = {"x": [tap("a", 8, 0, 1)], "y": [tap("a", 8, 1, 2)], "z": [tap("a", 8, 1, 2)]}
    figure = overlap_figure(overlap_of(tasks, ["a"]), "layers")
    observed, chance = figure.axes[:2]
    assert observed.images[0].get_clim() == chance.images[0].get_clim() == (0, 1)
    assert sorted(text.get_text() for text in observed.texts) == ["0.33"] * 4 + ["1.00"] * 2
    assert [label.get_text() for label in observed.get_yticklabels()] == ["x", "y", "z"]


def test_many_tasks_lose_numbers_and_names() -> None:
    figure = overlap_figure(overlap_of({f"task{i}": [tap("a", 8, i % 8)] for i in range(50)}, ["a"]), "layers")
    assert not figure.axes[0].texts
    assert not figure.axes[0].get_yticklabels()
