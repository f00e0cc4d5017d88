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
ORDER = ("offline-lite0", "offline-lite2", "sweep-pool", "sweep-images", "sweep-shots")
INTRODUCTION = """# Results

What the methods of this package reached on data sets that need no download. This page is written by
`python experiments/write_results_page.py` from the JSON files in `experiments/results`, which `torchsnow compare` wrote
from the YAML files beside them; [compare.md](compare.md) says how to make such files and what is equal for all methods.

**Read with care.** `snow` on this page is what the presets were before the
[grid delta](method.md#the-grid-delta), a narrow copy of the source, and no figure here is of the present default; they stay
until they are measured again. All of it was sized for two CPU cores: a few hundred training images or fewer, 64 pixels, four to
eight epochs.
Such a budget favours methods that start near their end (linear layers, and SNOW, whose head starts as one) and is
hard on those that train a whole network. Three seeds make wide intervals. The page shows that the table can be made by
one command, and what it looks like; it does not say which method is best for your images at your budget.

In offline-lite0 and offline-lite2 `snow`, `taps` and `head:probe` are as the version before trained them (torch 2.14), and
so is `random` in offline-lite0; `random` in offline-lite2 is of an earlier recipe. What the recipe does not touch was
trained before, with torch 2.15, and times and memory were taken before the delta's late entry. [recipe.md](recipe.md) has the ablations. In offline-lite0
nearly every task ends as a head alone. Costs are of the shapes: a head alone stores less and
adds next to nothing.

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
