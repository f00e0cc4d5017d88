"""From results.json to tables, pictures and words."""

from torchsnow.report.comparison import Comparison, compare_with_snow, where_snow_loses, where_snow_wins
from torchsnow.report.html import report_page
from torchsnow.report.markdown import results_markdown, save_pictures, summary_markdown
from torchsnow.report.results import Cell, Cost, Failure, Results, Scores, Shipped, Try
from torchsnow.report.spreadsheet import write_csv
from torchsnow.report.summary import Estimate, Summary, estimate, summarise
from torchsnow.report.words import row_words, share_of_source, size

__all__ = [
    "Cell",
    "Comparison",
    "Cost",
    "Estimate",
    "Failure",
    "Results",
    "Scores",
    "Shipped",
    "Summary",
    "Try",
    "compare_with_snow",
    "estimate",
    "report_page",
    "results_markdown",
    "row_words",
    "save_pictures",
    "share_of_source",
    "size",
    "summarise",
    "summary_markdown",
    "where_snow_loses",
    "where_snow_wins",
    "write_csv",
]
