"""Write docs/results.md, the tables behind it in docs/results-tables.md, and its pictures, from experiments/results.

python experiments/write_results_page.py
"""

# ruff: noqa: E501 (rows of Markdown tables cannot be folded)
from __future__ import annotations

from pathlib import Path

from torchsnow.report.page import results_markdown, save_pictures, summary_markdown
from torchsnow.report.results import Results

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
TABLES = PAGE.with_name("results-tables.md")
PICTURES = PAGE.parent / "images" / "results"
ORDER = ("five-sets", "fine-tuning", "many-tasks", "offline-lite0")
INTRODUCTION = """# Results

What SNOW gives, what it costs, and where it loses. Seeds, intervals, settings and pictures are in
[results-tables.md](results-tables.md); [compare.md](compare.md) says what is equal for all methods. cars196 (Stanford Cars),
birds200 (CUB-200-2010), plankton121, seedlings12 and cifar10 are class folders, which are no part of this repository.
Every method of five-sets had 60 epochs, and ships the last within a standard error of its highest validation accuracy. All was
made on one thread of busy machines of different speed, so times are too long, and those of different comparisons not comparable.

**Against a network of its own.** Test accuracy in %, seed 0 of all; fine-tuning had 30 epochs over images where SNOW had 60 over
stored features, its new last layer started as a linear probe, and one learning rate was tried:

| | images a class to train on | linear probe | SNOW | the whole network, fine-tuned |
|---|---|---|---|---|
| birds200 | 13 | 51.9 | 62.5 | 62.7 |
| cars196 | 21 | 41.8 | 70.5 | 68.9 |
| seedlings12 | 285 | 77.3 | 94.1 | 95.7 |

On the mean, SNOW closes all but a hundredth of the gap between the probe and fine-tuning. With 723 to 3,337 test images, no
difference between the two is larger than chance makes it. A fine-tuned network costs a whole pass and 14.7 MB for each task,
where SNOW costs 4% of a pass and 0.6 MB. plankton121, cifar10, other seeds and other learning rates are still to be run.

![Test accuracy over what a further task costs.](images/results/five-sets-cost-bundled.png)

"""
END = """
## Compared with the publications

| | best test accuracy |
|---|---|
| SNOW paper (Yoo, Kang, Cho, ICLR 2020), Food-101, DTD, Stanford 40 Actions, Cars, CUB-200 | left blank: its tables were not at hand when this was written |
| a student reproduction on the same data sets | 1 to 30% |
| this package on the same data sets | not run yet: `torchsnow compare --paper` needs the data and ResNet-50's weights |

The student reproduction failed by ordinary mistakes: its pooling weights were never parameters, the batch norms of its
frozen source kept following the training images, and its learning rate was 1. It pooled outputs of convolutions before
their batch norm, where the delta's own batch norm removes any scale, so that the pooling weights would have had no gradient
either. Each of these has a test here.

This page is written by `python experiments/write_results_page.py` from what `torchsnow compare` left in
`experiments/results`, by the YAML files next to them.
"""
TABLES_INTRODUCTION = """# Tables behind the results

All that the comparisons of [results.md](results.md) have measured, written by the same script.

"""


def results_files() -> list[Path]:
    """The stored comparisons, in the order of the page."""
    return [HERE / "results" / f"{name}.json" for name in ORDER if (HERE / "results" / f"{name}.json").exists()]


def pages() -> dict[Path, str]:
    """The text of every page."""
    results = [Results.load(file) for file in results_files()]
    return {
        PAGE: INTRODUCTION + summary_markdown(results) + END,
        TABLES: TABLES_INTRODUCTION + results_markdown(results, "images/results"),
    }


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for file in results_files():
        save_pictures(Results.load(file), PICTURES)
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
