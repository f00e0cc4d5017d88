"""How a method looks in every picture: one colour and marker per method, one filling and line per preset."""

from __future__ import annotations

from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from torchsnow.methods import METHODS
from torchsnow.report.words import shortened

# Told apart with any kind of colour vision: the palettes of Okabe and Ito, and of Paul Tol; markers differ as well.
_LOOKS = {
    "snow": ("#d55e00", "o"),
    "full": ("#000000", "s"),
    "features": ("#0072b2", "D"),
    "head": ("#56b4e9", "v"),
    "scratch": ("#888888", "X"),
    "random": ("#cc79a7", "^"),
    "lora": ("#009e73", "P"),
    "taps": ("#e69f00", "<"),
    "side": ("#882255", ">"),
    "bn": ("#332288", "h"),
}
_UNKNOWN = ("#666633", "*")
_FILLINGS = ("full", "none", "left", "top")
_LINES = ("-", "--", ":", "-.")


def look(method: str) -> dict[str, Any]:
    """Properties of a line of markers for "METHOD" or "METHOD:PRESET"."""
    name, _, preset = method.partition(":")
    colour, marker = _LOOKS.get(name, _UNKNOWN)
    presets = METHODS[name].presets if name in METHODS else ()
    filling = _FILLINGS[presets.index(preset) % len(_FILLINGS) if preset in presets else 0]
    return {"color": colour, "marker": marker, "fillstyle": filling, "markersize": 7, "markeredgewidth": 1.4}


def line_look(method: str, number: int = 0) -> dict[str, Any]:
    """The same, joined: presets have lines of their own, and so has each of several lines of one method."""
    properties = look(method)
    preset = _FILLINGS.index(properties["fillstyle"])
    return {**properties, "linestyle": _LINES[(preset + number) % len(_LINES)]}


def legend_beside(figure: Figure, handles: dict[str, Artist]) -> None:
    """A legend to the right of all panels, one entry per name."""
    legend = figure.legend(
        list(handles.values()),
        [shortened(name) for name in handles],
        loc="outside right upper",
        frameon=False,
        handlelength=3,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def methods_legend(figure: Figure, methods: list[str], joined: bool) -> None:
    """A legend of methods by their looks, joined by a line or not."""
    looks = {method: line_look(method) if joined else {"linestyle": "none", **look(method)} for method in methods}
    legend_beside(figure, {method: Line2D([], [], **properties) for method, properties in looks.items()})
