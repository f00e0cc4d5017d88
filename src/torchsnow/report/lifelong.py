"""A lifelong evaluation in pictures and words: from the content of its results.json to a figure and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchsnow.pages import Page
from torchsnow.plots import new_figure, png_bytes
from torchsnow.report.panels import accuracy_axis, whole_numbers
from torchsnow.report.styles import look
from torchsnow.report.words import NOTHING, percent, share_of_source, size

Results = Mapping[str, Any]

LEARNERS = {"snow": "SNOW, a delta per task", "sequential": "sequential fine-tuning"}
METRICS = {
    "average_accuracy": "average accuracy at the end",
    "learning_accuracy": "average accuracy when just learned",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "forgetting": "forgetting",
}
_LOOKS = {"snow": look("snow"), "sequential": look("full")}
_MOST_NUMBERS = 12  # tasks up to which the cells show their numbers
_CAPTION = (
    "Test accuracy of every task (across) after every task that was learned (down), and the mean over all tasks so far."
)


def lifelong_figure(results: Results) -> Figure:
    """The two accuracy matrices side by side, and the average accuracy over the sequence."""
    learners = results["learners"]
    figure = new_figure(15.5, 4.8)
    *maps, curve = figure.subplots(1, len(learners) + 1, width_ratios=[*([1.0] * len(learners)), 1.1])
    lowest = min(min(map(min, learner["matrix"])) for learner in learners.values())
    for axes, (name, learner) in zip(maps, learners.items(), strict=True):
        image = _heat_map(axes, learner["matrix"], lowest)
        axes.set_title(LEARNERS[name], fontsize=11)
        figure.colorbar(image, ax=axes, shrink=0.8, format=lambda share, _: f"{100 * share:.0f}%")
    for name, learner in learners.items():
        averages = learner["average_accuracies"]
        curve.plot(range(1, len(averages) + 1), averages, label=LEARNERS[name], **_LOOKS[name])
    curve.set_title("mean over the tasks so far", fontsize=11)
    curve.legend(frameon=False, loc="best")
    curve.grid(alpha=0.3)
    curve.spines[["top", "right"]].set_visible(False)
    whole_numbers(curve, "tasks learned")
    accuracy_axis(curve, "test accuracy")
    return figure


def _heat_map(axes: Axes, matrix: Sequence[Sequence[float]], lowest: float) -> Any:
    num_tasks = len(matrix)
    shares = np.full((num_tasks, num_tasks), np.nan)
    for i, row in enumerate(matrix):
        shares[i, : len(row)] = row
    image = axes.imshow(shares, cmap="viridis", vmin=lowest, vmax=1 if lowest < 1 else 1.01)
    if num_tasks <= _MOST_NUMBERS:
        for (i, j), share in np.ndenumerate(shares):
            if j <= i:
                colour = "black" if share > (1 + lowest) / 2 else "white"
                axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(num_tasks), [str(j + 1) for j in range(num_tasks)])
        axes.set_yticks(range(num_tasks), [str(i + 1) for i in range(num_tasks)])
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after learning task")
    return image


def lifelong_page(results: Results) -> Page:
    """One self-contained page: figures, what was lost and won, growth, and what each task was."""
    page = Page("Tasks one after another")
    settings = results["settings"]
    page.paragraph(
        f"{len(results['tasks'])} tasks on the source {settings['source']}: {settings['epochs']} epochs each at "
        f"{settings['image_size']} pixels, seed {settings['seed']}. Both learners saw the same images; epochs were "
        "chosen by the validation split, and the test split is only reported."
    )
    page.table(["", *[LEARNERS[name] for name in results["learners"]]], metric_rows(results))
    page.listing(findings(results))
    page.picture(png_bytes(lifelong_figure(results)), "Two heat maps and a curve: " + _CAPTION, _CAPTION)
    page.heading("Task by task")
    page.table(TASK_COLUMNS, task_rows(results), "Test accuracy in percent: just learned, and at the end.")
    page.heading("Growth")
    page.table(GROWTH_COLUMNS, growth_rows(results), _growth_caption(results))
    page.heading("The tasks")
    page.table(
        ["task", "images to train on", "to choose by", "to test with", "classes"],
        [
            [*[task[key] for key in ("name", "train_images", "val_images", "test_images")], ", ".join(task["classes"])]
            for task in results["tasks"]
        ],
    )
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    page.paragraph(f"Made {results['made']} with {versions} on {results['machine']}.")
    return page


def metric_rows(results: Results) -> list[list[str]]:
    """One row per metric, in percent or percentage points, one column per learner."""
    learners = results["learners"].values()
    rows = [[words, *[percent(learner[key]) for learner in learners]] for key, words in METRICS.items()]
    equal = ["yes" if learner["logits_bit_equal"] else "no" for learner in learners]
    return [*rows, ["old tasks' logits bit-equal to when they were learned", *equal]]


TASK_COLUMNS = [
    "task",
    "probe on the source",
    *[f"{words}: {when}" for words in LEARNERS.values() for when in ("learned", "end")],
]


def task_rows(results: Results) -> list[list[str]]:
    """One row per task: what a linear probe on the source reaches, and every learner at first and at the end."""
    rows = []
    for j, task in enumerate(results["tasks"]):
        matrices = [learner["matrix"] for learner in results["learners"].values()]
        shares = [share for matrix in matrices for share in (matrix[j][j], matrix[-1][j])]
        rows.append([task["name"], *[percent(share) for share in (results["source_probe"][j], *shares)]])
    return rows


GROWTH_COLUMNS = ["", *LEARNERS.values()]


def growth_rows(results: Results) -> list[list[str]]:
    """What a task adds, on average over the sequence."""
    learners = results["learners"].values()
    source = results["source_multiply_adds"]
    adds = [share_of_source(_mean(learner["added_multiply_adds"]) / source) for learner in learners]
    growth = [_slope(learner["pass_s"]) for learner in learners]
    return [
        ["kept per task", *[size(_mean(learner["stored_bytes"])) for learner in learners]],
        ["multiply-adds per task, of the source's", *adds],
        ["training per task, s", *[f"{_mean(learner['train_s']):.1f}" for learner in learners]],
        ["one image, first task alone, ms", *[f"{1000 * learner['pass_s'][0]:.2f}" for learner in learners]],
        ["one image, all tasks, ms", *[f"{1000 * learner['pass_s'][-1]:.2f}" for learner in learners]],
        ["one image, each further task, ms", *[NOTHING if s is None else f"{1000 * s:.2f}" for s in growth]],
    ]


def _growth_caption(results: Results) -> str:
    return f"Beside one network of {size(results['source_bytes'])} that both need. Times in PyTorch, without decoding."


def findings(results: Results) -> list[str]:
    """Who ends better where, losses first."""
    learners = results["learners"]
    snow, other = learners["snow"]["matrix"], learners["sequential"]["matrix"]
    names = [task["name"] for task in results["tasks"]]
    probe = results["source_probe"]
    final = [(name, snow[-1][j], other[-1][j]) for j, name in enumerate(names)]
    first = [(name, snow[j][j], other[j][j]) for j, name in enumerate(names)]
    return [
        _count("At the end, sequential fine-tuning is better than SNOW", [f for f in final if f[2] > f[1]]),
        _count("When just learned, sequential fine-tuning is better than SNOW", [f for f in first if f[2] > f[1]]),
        _count(
            "A linear probe on the source is better than SNOW",
            [(name, snow[-1][j], probe[j]) for j, name in enumerate(names) if probe[j] > snow[-1][j]],
        ),
        f"At the end, SNOW is better than sequential fine-tuning in {sum(a > b for _, a, b in final)} of {len(names)} "
        "tasks.",
        f"A linear probe on the source, which forgets nothing either, averages {percent(_mean(probe))}%.",
    ]


def _count(words: str, cases: Sequence[tuple[str, float, float]]) -> str:
    if not cases:
        return f"{words} in no task."
    listed = ", ".join(f"{name} ({percent(theirs)} against {percent(own)})" for name, own, theirs in cases)
    return f"{words} in {len(cases)} task{'s' if len(cases) > 1 else ''}: {listed}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _slope(values: Sequence[float]) -> float | None:
    """What each further value adds, by least squares; None for a single one."""
    return float(np.polyfit(range(len(values)), values, 1)[0]) if len(values) > 1 else None
