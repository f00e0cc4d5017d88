"""Which channels of a network must keep the same width: the bookkeeping behind a derived delta.

A channel dimension is a layout: a list of spans, runs of source channels that shrink as one. An addition makes the
spans of both operands one; a split or a slice cuts a span in two, everywhere it occurs. When the whole graph has
been read, each span of N channels gets `max(1, round(N / divisor))` in the delta.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchsnow.errors import DeltaError
from torchsnow.pooling import num_pooled


class Span:
    """A run of `size` channels. `pinned` ones keep their size; `scaled` ones shrink."""

    __slots__ = ("parts", "pinned", "same_as", "scaled", "size")

    def __init__(self, size: int, scaled: bool = True) -> None:
        self.size = size
        self.scaled = scaled
        self.pinned = False
        self.same_as: Span | None = None
        self.parts: tuple[Span, Span] | None = None

    def root(self) -> Span:
        span = self
        while span.same_as is not None:
            span = span.same_as
        return span


Layout = list[Span]


def spans(layout: Layout) -> Layout:
    """The layout with every cut carried out and every union resolved."""
    result: Layout = []
    for span in layout:
        root = span.root()
        if root.parts is None:
            result.append(root)
        else:
            result.extend(spans(list(root.parts)))
    return result


def num_chs(layout: Layout) -> int:
    """Channels of the source."""
    return sum(span.size for span in layout)


def cut(layout: Layout, at: int) -> tuple[Layout, Layout]:
    """The layouts before and from channel `at`; the span that lies across it is cut for good."""
    before: Layout = []
    rest = spans(layout)
    while rest and at >= rest[0].size:
        at -= rest[0].size
        before.append(rest.pop(0))
    if at and rest:
        span = rest[0]
        span.parts = (Span(at, span.scaled), Span(span.size - at, span.scaled))
        for part in span.parts:
            part.pinned = span.pinned
        return [*before, span.parts[0]], [span.parts[1], *rest[1:]]
    return before, rest


def pieces(layout: Layout, sizes: Sequence[int]) -> list[Layout]:
    """Cut a layout into consecutive layouts of the given sizes."""
    result = []
    for size in sizes:
        piece, layout = cut(layout, size)
        result.append(piece)
    return result


def unify(first: Layout, second: Layout) -> None:
    """Make two layouts of equal size shrink alike, channel by channel.

    Raises DeltaError when their sizes differ.
    """
    if num_chs(first) != num_chs(second):
        raise DeltaError(f"layouts of {num_chs(first)} and {num_chs(second)} channels cannot be one")
    first, second = spans(first), spans(second)
    while first and second:
        size = min(first[0].size, second[0].size)
        head, first = cut(first, size)
        other, second = cut(second, size)
        first, second = spans(first), spans(second)
        a, b = spans(head)[0].root(), spans(other)[0].root()
        if a is not b:
            b.same_as = a
            a.scaled |= b.scaled
            a.pinned |= b.pinned


def pin(layout: Layout) -> None:
    """Keep a layout at the source's own size."""
    for span in spans(layout):
        span.pinned = True


def width(layout: Layout, divisor: int) -> int:
    """Channels of the delta."""
    return sum(
        span.size if span.pinned or not span.scaled else num_pooled(span.size, divisor) for span in spans(layout)
    )
