"""Feature extraction (FE): the stages before the last are frozen, batch norm statistics included; the rest trains."""

from __future__ import annotations

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from torchsnow.delta.cost import source_cost
from torchsnow.errors import TrainingError
from torchsnow.methods.network import NetworkMethod
from torchsnow.source.graph import VALUE
from torchsnow.source.source import Source
from torchsnow.train.contract import TaskCost


def make_features(source: Source, num_classes: int, seed: int, preset: str = "default") -> NetworkMethod:
    """The stages of timm's `feature_info` but the last are frozen: of the usual four, the first three.

    See `NetworkMethod` for the presets. Raises TrainingError for a network whose stages are not known.
    """
    frozen = _before_last_stage(source)
    whole = source_cost(source).multiply_adds
    cost = TaskCost(whole, whole - _multiply_adds_of(source, frozen))

    def lives(name: str) -> bool:
        return not any(name == part or name.startswith(f"{part}.") for part in frozen)

    return NetworkMethod("features", source, num_classes, seed, lives, cost=cost, preset=preset)


def _before_last_stage(source: Source) -> set[str]:
    """Names of all layers that run up to the end of the last stage but one."""
    stages = [str(stage["module"]) for stage in getattr(source.model, "feature_info", None) or []]
    if len(stages) < 2:
        raise TrainingError(f"the method 'features' needs a network whose stages timm knows; {source.name} has none")
    nodes = list(source.traced.graph.nodes)
    ends = [at for at, node in enumerate(nodes) if _belongs(node, stages[-2])]
    if not ends:
        raise TrainingError(f"cannot find the stage {stages[-2]!r} of {source.name} in its graph")
    names = [str(node.target) for node in nodes[: ends[-1] + 1] if node.op in ("call_module", "get_attr")]
    modules = {name for name, _ in source.model.named_modules()}
    return {name if name in modules else name.rpartition(".")[0] for name in names}  # others are tensors used directly


def _belongs(node: fx.Node, module: str) -> bool:
    return node.op == "call_module" and (str(node.target) + ".").startswith(f"{module}.")


def _multiply_adds_of(source: Source, layers: set[str]) -> int:
    """Multiply-adds of some layers, for one image at the source's own size."""
    image = source.traced.graph.find_nodes(op="placeholder")[0].meta[VALUE]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source.traced(image)
    own = {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return int(sum(own.get(name, 0) for name in layers) // (2 * len(image)))
