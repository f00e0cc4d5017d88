from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsnow.delta import channels
from torchsnow.delta.channels import Layout, Span
from torchsnow.errors import DeltaError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)
DIVISORS = st.integers(1, 16)


def layout_of(*sizes: int) -> Layout:
    return [Span(size) for size in sizes]


def sizes_of(layout: Layout) -> list[int]:
    return [span.size for span in channels.spans(layout)]


@given(sizes=SIZES, divisor=DIVISORS)
def test_each_span_shrinks_by_the_width_rule(sizes: list[int], divisor: int) -> None:
    expected = sum(max(1, round(size / divisor)) for size in sizes)
    assert channels.width(layout_of(*sizes), divisor) == expected


@given(data=st.data(), sizes=SIZES, divisor=DIVISORS)
def test_pieces_partition_a_layout(data: st.DataObject, sizes: list[int], divisor: int) -> None:
    layout = layout_of(*sizes)
    total = sum(sizes)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=4)))
    wanted = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    pieces = channels.pieces(layout, wanted)
    assert [channels.num_chs(piece) for piece in pieces] == wanted
    assert [id(s) for piece in pieces for s in channels.spans(piece)] == [id(s) for s in channels.spans(layout)]
    assert sum(channels.width(piece, divisor) for piece in pieces) == channels.width(layout, divisor)
    assert channels.num_chs(channels.spans(layout)) == total


@given(data=st.data(), sizes=SIZES)
def test_the_same_cut_twice_gives_the_same_spans(data: st.DataObject, sizes: list[int]) -> None:
    layout = layout_of(*sizes)
    at = data.draw(st.integers(0, sum(sizes)))
    first, second = channels.cut(layout, at), channels.cut(layout, at)
    for a, b in zip(first, second, strict=True):
        assert [id(span) for span in channels.spans(a)] == [id(span) for span in channels.spans(b)]


@given(data=st.data(), divisor=DIVISORS)
def test_any_run_of_cuts_and_unions_keeps_sizes_and_equal_widths(data: st.DataObject, divisor: int) -> None:
    total = data.draw(st.integers(2, 30))
    inner = st.lists(st.integers(1, total - 1), max_size=3, unique=True).map(sorted)
    cut_points = data.draw(st.lists(inner, min_size=2, max_size=4))
    layouts = [layout_of(*(b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True))) for cuts in cut_points]
    places = st.integers(0, len(layouts) - 1)
    one_width: list[tuple[Layout, Layout]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        first, second = layouts[data.draw(places)], layouts[data.draw(places)]
        at = data.draw(st.integers(0, total))
        if data.draw(st.booleans()):
            channels.unify(first, second)
            one_width.append((first, second))
        else:
            before, after = channels.cut(first, at)
            channels.unify(before, channels.cut(second, at)[0])
            one_width.append((before, channels.cut(second, at)[0]))
            assert channels.num_chs(after) == total - at
    for layout in layouts:
        assert sum(sizes_of(layout)) == total
        assert channels.width(layout, 1) == total
    for first, second in one_width:
        assert channels.width(first, divisor) == channels.width(second, divisor)
        assert [id(s.root()) for s in channels.spans(first)] == [id(s.root()) for s in channels.spans(second)]


def test_unify_cuts_both_where_either_is_cut() -> None:
    first, second = layout_of(6, 10), layout_of(10, 6)
    channels.unify(first, second)
    assert sizes_of(first) == sizes_of(second) == [6, 4, 6]


def test_a_union_is_known_to_what_was_unified_before() -> None:
    a, b, c = layout_of(16), layout_of(16), layout_of(16)
    channels.unify(a, b)
    channels.unify(b, c)
    channels.pin(c)
    assert [channels.width(layout, 8) for layout in (a, b, c)] == [16, 16, 16]


@pytest.mark.parametrize("pinned", [0, 1])
def test_one_pinned_layout_pins_what_it_is_unified_with(pinned: int) -> None:
    layouts = [layout_of(16), layout_of(12, 4)]
    channels.pin(layouts[pinned])
    channels.unify(*layouts)
    assert [channels.width(layout, 8) for layout in layouts] == [16, 16]


def test_layouts_of_different_sizes_cannot_be_one() -> None:
    with pytest.raises(DeltaError, match="layouts of 8 and 9 channels cannot be one"):
        channels.unify(layout_of(8), layout_of(4, 5))


def test_pinned_channels_keep_their_size_through_later_cuts() -> None:
    layout = layout_of(16, 8)
    channels.pin(layout[:1])
    assert [channels.width(piece, 8) for piece in channels.pieces(layout, [6, 18])] == [6, 11]


def test_a_fixed_span_shrinks_only_once_it_joins_one_that_does() -> None:
    fixed, learned = [Span(16, scaled=False)], layout_of(16)
    assert channels.width(fixed, 8) == 16
    channels.unify(fixed, learned)
    assert channels.width(fixed, 8) == channels.width(learned, 8) == 2
