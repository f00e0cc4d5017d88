"""Which taps a delta reads, and where it enters the source's pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor, fx

from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import DeltaError
from torchsnow.source.graph import VALUE
from torchsnow.source.source import Source
from torchsnow.source.taps import Tap

ENTRY = "entry_of_delta"  # the name of a body's first layer, where that is none of the source's


def subscribed_taps(source: Source, spec: DeltaSpec) -> dict[str, Tap]:
    """The taps that the layers of a delta read, each with the names of these layers; none for a head alone.

    Raises DeltaError for a name that is no tap, or a tap before the delta's entry.
    """
    if spec.width_divisor is None:
        return {}
    entry = entry_tap(source, spec.entry_reduction)
    order = tuple(source.taps)
    late = order if entry is None else order[order.index(entry.name) :]
    names = late if spec.taps is None else tap_names(source, spec.taps)
    early = [name for name in names if name not in late]
    if early:
        raise DeltaError(
            f"the tap {early[0]!r} is before {late[0]!r}, where a delta with entry_reduction={spec.entry_reduction} "
            "enters the pass; leave it out of taps, or use a smaller entry_reduction"
        )
    taps = {name: source.taps[name] for name in names}
    if entry is None:
        return taps
    consumers = entry.consumers if entry.name in names else ()
    return {entry.name: replace(entry, consumers=(ENTRY, *consumers))} | {
        n: t for n, t in taps.items() if n != entry.name
    }


def tap_names(source: Source, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The given tap names in the order of the pass, or all of them for None."""
    unknown = set(names or ()) - set(source.taps)
    if unknown:
        raise DeltaError(f"{source.name} has no tap {sorted(unknown)[0]!r}; its taps are {', '.join(source.taps)}")
    return tuple(name for name in source.taps if names is None or name in names)


def entry_tap(source: Source, reduction: int) -> Tap | None:
    """The first tap from which a delta can continue alone, and whose consumers return maps of at most 1/reduction of
    the image's height. None where a delta enters at the image: for a reduction of 1, and where the source has no such
    tap before its maps are half as high again.

    It can continue from where everything that follows in the source depends on the image through this tap.
    """
    height = source.input_config.input_size[1]
    nodes = {node.name: node for node in source.traced.graph.nodes}
    cut_points = {node.name for node in _cut_points(source.traced)}
    for tap in source.taps.values() if reduction > 1 else ():
        tallest = max(nodes[consumer].meta[VALUE].shape[2] for consumer in tap.consumers) if tap.dim == 1 else height
        if tap.node in cut_points and tallest * reduction <= height < 2 * reduction * tap.size[0]:
            return tap
    return None


def _cut_points(traced: fx.GraphModule) -> Iterator[fx.Node]:
    """The tensors, computed from the image, behind which nothing that was computed before is read again."""
    nodes = list(traced.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    images_values = values_of_image(nodes)
    read_until = -1  # by anything computed so far
    for i, node in enumerate(nodes):
        if node not in images_values:
            continue
        if read_until <= i and node.op != "placeholder" and isinstance(node.meta.get(VALUE), Tensor):
            yield node
        read_until = max([read_until, *(place[user] for user in node.users)])


def values_of_image(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The image and all that is computed from it, of nodes in the order of the pass."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
