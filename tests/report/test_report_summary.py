from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from synthetic_results import cell, cost, from_accuracies, results, shipped, sweep, whole_comparison

from torchsnow.report.summary import compare_with_snow, estimate, summarise, tally, where_snow_loses, where_snow_wins


def test_estimate_is_that_of_a_t_interval() -> None:
    values = [0.81, 0.84, 0.83, 0.79]
    made = estimate(values)
    interval = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (made.num_seeds, made.mean, made.deviation) == pytest.approx((4, np.mean(values), np.std(values, ddof=1)))
    assert made.interval == pytest.approx(interval)


def test_one_seed_has_no_interval() -> None:
    made = estimate([0.8])
    assert (made.mean, made.deviation, made.half_width, made.interval) == (0.8, None, None, None)


def test_seeds_become_one_row() -> None:
    rows = summarise(whole_comparison())
    assert len(rows) == 11 * 4 * 2 - 4
    assert {row.seeds for row in rows} == {(0, 1, 2)}
    assert len({(row.source, row.data, row.method) for row in rows}) == len(rows)


def test_row_holds_the_means() -> None:
    cells = [
        cell(accuracy=0.7, shipped=shipped("snow", num_params=100)),
        cell(seed=1, accuracy=0.8, shipped=shipped("snow", num_params=201), lr=0.01),
    ]
    (row,) = summarise(results(cells))
    assert row.accuracy.mean == pytest.approx(0.75)
    assert row.balanced_accuracy == pytest.approx(0.75 * 0.97)
    assert row.calibration_error == pytest.approx(0.12 * 0.25)
    assert row.val_accuracy == pytest.approx(0.76)
    assert (row.num_params, row.stored_bytes, row.lrs) == (150, 520_000, (0.005, 0.01))


def test_variants_are_rows_of_their_own() -> None:
    cells = [cell(variant={"a": 1, "b": 2}), cell(seed=1, variant={"b": 2, "a": 1}), cell(variant={"a": 2, "b": 2})]
    assert [row.seeds for row in summarise(results(cells))] == [(0, 1), (0,)]


def test_clear_loss_with_its_costs() -> None:
    made = from_accuracies(
        {"snow": (0.79, 0.788, 0.789), "full": (0.82, 0.822, 0.824)}, costs=(cost("snow"), cost("full"))
    )
    differences = [0.03, 0.034, 0.035]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(differences), scale=stats.sem(differences))
    assert where_snow_loses(made) == [
        "On elpv:binary (bundled): full fine-tuning is 3.3 points better than SNOW (82.2% against 78.9%; 3 seeds, "
        f"paired difference 95% interval {100 * low:.1f} to {100 * high:.1f}), a clear difference. SNOW stores 520 kB "
        "against 13.6 MB, with 123,456 parameters against 3,400,000; a further task adds 3.4% of the source's "
        "multiply-adds against 100%."
    ]
    assert where_snow_wins(made) == []


def test_difference_is_paired_by_seed() -> None:
    """The spread between seeds is far larger than the difference, which is the same in all."""
    made = from_accuracies({"snow": (0.5, 0.7, 0.9), "lora": (0.51, 0.711, 0.912)})
    (one,) = compare_with_snow(made)
    assert one.is_clear
    assert one.is_loss


def test_only_common_seeds_count() -> None:
    cells = [cell("snow", 0, 0.8), cell("snow", 1, 0.9), cell("full", 1, 0.8), cell("full", 2, 0.99)]
    (one,) = compare_with_snow(results(cells))
    assert (one.difference.num_seeds, one.snow_accuracy, one.other_accuracy) == (1, 0.9, 0.8)
    assert compare_with_snow(results([cell("snow", 0), cell("full", 1)])) == []


def test_noise_and_single_seeds_are_never_clear() -> None:
    noisy = from_accuracies({"snow": (0.8, 0.7, 0.9), "full": (0.9, 0.8, 0.8), "head": (0.7, 0.8, 0.85)})
    assert "within noise" in where_snow_loses(noisy)[0]
    assert "better within noise than the last layer alone (1.7 points)" in where_snow_wins(noisy)[0]
    single = from_accuracies({"snow": (0.8,), "full": (0.9,)})
    assert "one seed, so no interval), within noise" in where_snow_loses(single)[0]


def test_wins_are_one_statement_per_place() -> None:
    made = from_accuracies(
        {"snow": (0.8, 0.81, 0.82), "head": (0.7, 0.705, 0.725), "side": (0.5, 0.52, 0.51), "taps": (0.8, 0.81, 0.82)}
    )
    assert where_snow_loses(made) == []
    assert where_snow_wins(made) == [
        "On elpv:binary (bundled): SNOW is clearly better than the last layer alone (10.0 points), side-tuning (30.0 "
        "points); exactly as good as a linear layer over all taps."
    ]


def test_largest_loss_comes_first() -> None:
    made = from_accuracies({"lora": (0.82, 0.83), "snow": (0.8, 0.8), "full": (0.9, 0.91)})
    assert [one.other.method for one in compare_with_snow(made)] == ["full", "lora"]


def test_a_preset_stands_in_for_snow() -> None:
    preset = from_accuracies({"snow:paper": (0.8, 0.8), "full": (0.9, 0.91)})
    assert "better than SNOW (paper)" in where_snow_loses(preset)[0]
    both = from_accuracies({"snow:paper": (0.9, 0.9), "snow": (0.8, 0.8)})
    assert "SNOW (paper) is 10.0 points better than SNOW " in where_snow_loses(both)[0]


def test_variants_are_compared_with_their_like() -> None:
    swept = compare_with_snow(sweep("train_share", (1.0, 0.1)))
    assert all(one.snow.variant == one.other.variant for one in swept)
    assert len(swept) == 2 * 2 * 2
    divided = [one for one in compare_with_snow(sweep("width_divisor", (4, 8))) if one.other.method == "full"]
    assert [one.snow.variant["width_divisor"] for one in divided] == [4, 8, 4, 8]
    assert divided[0].place == "elpv:binary (bundled, width_divisor=4)"


def test_costs_are_those_of_what_shipped() -> None:
    """Of a variant too, and the mean where the body shipped with some seeds alone."""
    half = [
        cell(seed=seed, accuracy=0.7, variant={"width_divisor": 2}, shipped=shipped("snow", added_multiply_adds=cost))
        for seed, cost in enumerate((78_000_000, 0))
    ]
    (loss,) = where_snow_loses(results([*half, cell("full", 0, 0.8)]))
    assert "a further task adds 10% of the source's multiply-adds against 100%" in loss


def test_tally_counts_every_comparison() -> None:
    made = from_accuracies(
        {"snow": (0.8, 0.81, 0.82), "full": (0.9, 0.915, 0.92), "lora": (0.9, 0.7, 0.9), "head": (0.7, 0.715, 0.72)}
    )
    assert tally(made) == (
        "3 comparisons of test accuracy: SNOW is clearly worse in 1, worse within noise in 1, better or equal within "
        "noise in 0, and clearly better in 1."
    )
    assert tally(from_accuracies({"snow": (0.8,)})).startswith("There is nothing to compare")


def test_seeds_that_agree_to_the_last_image_make_nothing_clear() -> None:
    made = from_accuracies({"snow": (0.8, 0.7, 0.6), "lora": (0.9, 0.8, 0.7)})  # equal but for rounding
    (one,) = compare_with_snow(made)
    assert not one.is_clear
    (sentence,) = where_snow_loses(made)
    assert "3 seeds with the same difference, so no interval), within noise" in sentence
