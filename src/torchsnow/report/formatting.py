"""How a report writes methods, variants and numbers."""

from __future__ import annotations

from torchsnow.report.results import Variant

NOTHING = "-"  # where nothing was measured

_METHODS = {
    "full": "full fine-tuning",
    "features": "fine-tuning of the last stage",
    "head": "the last layer alone",
    "snow": "SNOW",
    "scratch": "the delta without subscription",
    "random": "SNOW with a random subscription",
    "lora": "LoRA",
    "taps": "a linear layer over all taps",
    "side": "side-tuning",
    "bn": "tuning of batch norms",
}


def method_label(method: str) -> str:
    """A method in plain words: "full" -> "full fine-tuning"."""
    name, _, preset = method.partition(":")
    label = _METHODS.get(name, name)
    return f"{label} ({preset})" if preset else label


def variant_label(variant: Variant) -> str:
    """ "width_divisor=4, train_share=0.1", or nothing."""
    return ", ".join(f"{name}={value_label(value)}" for name, value in variant.items())


def value_label(value: str | float | bool | None) -> str:
    """One swept value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def row_label(method: str, variant: Variant) -> str:
    """A method with its variant, as tables and legends name it."""
    return ", ".join(text for text in (method, variant_label(variant)) if text)


def shortened(name: str, length: int = 36) -> str:
    """A name that fits into a picture. The end tells names apart: they may be paths."""
    return name if len(name) <= length else f"...{name[3 - length :]}"


def percent(share: float | None, decimals: int = 1) -> str:
    """A share as a number of percent, without the sign."""
    return NOTHING if share is None else f"{100 * share:.{decimals}f}"


def size(size_bytes: float | None) -> str:
    """Decimal units: "512 B", "16.4 kB", "13.6 MB"."""
    if size_bytes is None:
        return NOTHING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def share_of_source(share: float) -> str:
    """A share of the source's multiply-adds: "3.4%", "<0.1%"."""
    return "<0.1%" if share < 0.001 else f"{100 * share:.3g}%" if share < 0.1 else f"{100 * share:.0f}%"
