from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from synthetic_results import cell, cost, from_accuracies, results, sweep, whole_comparison

from torchsnow.errors import ExperimentError
from torchsnow.report.page import report_page, results_markdown, save_pictures, summary_markdown
from torchsnow.report.results import Failure, Trial
from torchsnow.report.summary import where_snow_loses, where_snow_wins

SMALL = from_accuracies(
    {"snow": (0.8, 0.82, 0.84), "full": (0.9, 0.9, 0.93), "head": (0.7, 0.72, 0.71)},
    costs=(cost("snow"), cost("full")),
    failed=tuple(Failure("bundled", "hf:beans", "lora", seed, {}, "no layer takes it") for seed in (0, 1)),
)


class Parts(HTMLParser):
    """Texts by tag, and all attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._tag, []).append(data)


def rows(markdown: str, first: str) -> list[list[str]]:
    """The rows of Markdown tables that begin with this cell."""
    lines = [line for line in markdown.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_page_holds_everything_itself() -> None:
    parts = Parts(report_page(SMALL).html())
    sources = [value for tag, key, value in parts.attributes if key in ("src", "href")]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert len([1 for tag, key, value in parts.attributes if (tag, key) == ("img", "alt") and value]) == 3


def test_page_says_what_was_run_and_where_snow_loses() -> None:
    parts = Parts(report_page(SMALL).html())
    assert parts.texts["h2"] == [
        *("What was run", "Where SNOW loses", "Where SNOW wins", "Accuracy", "Costs", "Pictures"),
        *("How choices were made", "What failed"),
    ]
    assert "9 trainings finished and 2 failed, with the seeds 0, 1, 2." in parts.texts["p"][0]
    assert "x86_64, 2 threads, cpu" in parts.texts["p"][0]
    assert "torch 2.15.0" in parts.texts["p"][0]
    listed = parts.texts["li"]
    assert {*where_snow_loses(SMALL), *where_snow_wins(SMALL)} <= set(listed)
    assert "epochs: 5" in listed
    assert "lora on bundled: no layer takes it (hf:beans, seed 0; hf:beans, seed 1)" in listed


def test_a_remark_stands_on_top() -> None:
    text = "its figures mean nothing"
    page = report_page(replace(SMALL, experiment={**SMALL.experiment, "remark": text})).html()
    assert page.index(text) < page.index("What was run")


def test_tables_hold_the_numbers() -> None:
    accuracy, costs = rows(results_markdown([SMALL]), "snow")
    assert accuracy == [
        *("snow", "3", "82.0 ± 2.0", "77.0 to 87.0", "79.5", "2.2", "83.0", "body", "123,456", "3.4%", "520 kB"),
        "0.005",
    ]
    assert costs == ["snow", "0.137", "0.23", "206 MB", "0.23", "103%", "3.4%", "134%"]
    assert rows(results_markdown([SMALL]), "head")[1] == ["head", *"----", "100%", "\\<0.1%", "100%"]


def test_a_summary_has_a_row_per_method_and_a_column_per_data_set() -> None:
    made = whole_comparison(("bundled",))
    text = summary_markdown([results([one for one in made.cells if (one.data, one.method) != ("hf:beans", "full")])])
    (full,), (snow,) = rows(text, "full"), rows(text, "snow")
    assert len(full) == len(snow) == 1 + 4 + 3
    assert full[4:] == ["-", "100%", "13.6 MB", "31 s"]
    assert snow[5:] == ["3.4%", "520 kB", "31 s"]
    assert "comparisons of test accuracy" in text
    assert all(line in text for line in where_snow_wins(made)[:1])


def test_many_data_sets_are_rows_and_a_summary_has_their_mean_median_and_worst() -> None:
    accuracies = [0.5 + place / 100 for place in range(13)]
    made = results([cell("snow", 0, value, data=f"set {i}") for i, value in enumerate(accuracies)] + [cell("taps")])
    (snow,), (taps,) = (rows(summary_markdown([made]), name) for name in ("snow", "taps"))
    assert snow[1:4] == ["56.0", "56.0", "50.0 (set 0)"]
    assert taps[3] == "80.0 (elpv:binary)"
    text = results_markdown([made])
    assert rows(text, "set 3")[0] == ["set 3", "2", "600", "400", "53.0", "-"]
    assert "Pictures" not in text
    assert "On set" not in summary_markdown([made])


def test_one_seed_has_dashes() -> None:
    (row,) = rows(results_markdown([from_accuracies({"snow": (0.8,)})]), "snow")[:1]
    assert row[1:4] == ["1", "80.0", "-"]


def test_intervals_end_at_what_can_be() -> None:
    row = rows(results_markdown([from_accuracies({"snow": (0.9, 1.0, 0.99)})]), "snow")[0]
    assert row[3].endswith(" to 100.0")


def test_nothing_finished_is_one_sentence() -> None:
    nothing = replace(SMALL, cells=())
    for make in (lambda: report_page(nothing), lambda: results_markdown([nothing])):
        with pytest.raises(
            ExperimentError,
            match="'offline' has no finished training, so there is nothing to report; the first of 2 failures",
        ):
            make()


def test_search_is_told_as_it_was() -> None:
    same = results_markdown([SMALL])
    assert "for every method with the same number of tries (3)" in same
    assert "In 0 of 3 searches" in same
    uneven = [cell("full", tries=(Trial(0.005, 0.8), Trial(0.01, 0.7))), cell()]
    assert "with 2 to 3 tries" in results_markdown([results(uneven)])
    assert "In 1 of 2 searches" in results_markdown([results(uneven)])
    assert "No learning rate was searched for" in results_markdown([results([cell(tries=())])])


def test_without_snow_nothing_is_said_of_it() -> None:
    made = results_markdown([from_accuracies({"full": (0.8, 0.9), "head": (0.7, 0.7)})])
    assert "Where SNOW" not in made


def test_without_losses_it_says_so() -> None:
    made = results_markdown([from_accuracies({"snow": (0.8, 0.9), "head": (0.7, 0.7)})])
    assert "Nowhere in this comparison is another method better." in made


def test_pictures_lie_where_the_text_says(tmp_path: Path) -> None:
    saved = save_pictures(SMALL, tmp_path)
    linked = re.findall(r"!\[.*?\]\((.*?)\)", results_markdown([SMALL], "images"))
    assert linked == [f"images/{path.name}" for path in saved]
    assert [path.name for path in saved] == [
        *("offline-cost-bundled.png", "offline-accuracy-bundled.png", "offline-curves-bundled.png"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in saved)
    assert "![" not in results_markdown([SMALL])


def test_several_comparisons_are_one_text() -> None:
    made = results_markdown([whole_comparison(), sweep("width_divisor", (2, 4))])
    assert re.findall("^## (.*)", made, re.MULTILINE) == ["Comparison offline", "Comparison sweep of width\\_divisor"]
    assert len(rows(made, "snow, width\\_divisor=4")) == 2


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b", "*a* _b_ `c`", "[x](y)", "&lt;", "a\nb", "\\|"])
def test_names_are_never_markup(name: str) -> None:
    made = results([cell(data=name), cell("full", data=name)], name=name)
    page = report_page(made).html()
    assert "<script" not in page
    assert name in Parts(page).texts["h1"][0]
    html = MarkdownIt("commonmark").enable("table").render(results_markdown([made]))
    assert f"Comparison {' '.join(name.split())}" == "".join(Parts(html).texts["h2"]).strip()
    assert not {"script", "em", "code", "a"} & set(Parts(html).texts)
    assert html.count("<tr>") == 1 + 2 + 1 + 2
