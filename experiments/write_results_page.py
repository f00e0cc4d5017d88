"""Write docs/results.md, and its pictures, from the comparisons in experiments/results.

python experiments/write_results_page.py
"""

# ruff: noqa: E501 (rows of Markdown tables cannot be folded)
from __future__ import annotations

from pathlib import Path

from torchsnow.report import Results, results_markdown, save_pictures

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
PICTURES = PAGE.parent / "images" / "results"
ORDER = ("five-sets", "offline-lite0")
INTRODUCTION = """# Results

What the methods of this package reached. This page is written by `python experiments/write_results_page.py` from the JSON
files in `experiments/results`, which `torchsnow compare` wrote from the YAML files beside them; [compare.md](compare.md)
says how to make such files and what is equal for all methods.

**five-sets** is five sets of some thousand images: cars196 (196 kinds of cars, crops of Stanford Cars), birds200
(CUB-200-2010), plankton121 (121 kinds of plankton, grey), seedlings12 (seedlings of 12 plants) and cifar10. They are no part
of this repository. Only the seeds that are listed were run so far, and only methods that share the source's pass; full
fine-tuning and last-stage tuning at this size are still to be measured.

## Beside the publications

| | best test accuracy |
|---|---|
| SNOW paper (Yoo, Kang, Cho, ICLR 2020), Food-101, DTD, Stanford 40 Actions, Cars, CUB-200 | left blank: its tables were not at hand when this was written |
| a student reproduction on the same data sets | 1 to 30% |
| this package on the same data sets | not run yet: `torchsnow compare --paper` needs the data and ResNet-50's weights |

The student reproduction failed by ordinary mistakes: its pooling weights were never parameters, so the choice of channels
could not be learned; the batch norms of its frozen source went on following the training images; its learning rate
was 1. It pooled outputs of convolutions before their batch norm, where the delta's own batch norm removes any scale, so
that the pooling weights would have had no gradient either. Each of these has a test here.

"""


def results_files() -> list[Path]:
    """The stored comparisons, in the order of the page."""
    return [HERE / "results" / f"{name}.json" for name in ORDER if (HERE / "results" / f"{name}.json").exists()]


def page_text() -> str:
    """The whole page."""
    return INTRODUCTION + results_markdown([Results.load(file) for file in results_files()], "images/results")


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for file in results_files():
        save_pictures(Results.load(file), PICTURES)
    PAGE.write_text(page_text(), encoding="utf-8")
