"""The source pass as it is run: batch norms folded into convolutions, dead layers dropped, optionally in bfloat16."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torchsnow.source.features import gather
from torchsnow.source.graph import forget_text
from torchsnow.source.grid import GridWanted, Parts, join_channels, moments, to_grid

# Convolutions that a batch norm folds into: those whose weight is used as it stands.
FOLDABLE = (nn.Conv2d.forward, Conv2dSame.forward)


@dataclass(frozen=True)
class PlanOutput:
    """One value that a plan returns: the graph node `node`, or what is made of it.

    "whole" is the value itself; for "channels" an extra input of the plan says which of them to take along `dim`, (M,).
    """

    node: str
    kind: Literal["whole", "channels"] = "whole"
    dim: int = 1


@dataclass(frozen=True)
class GridOutput:
    """A grid over several values: `nodes` are their names, in which dimension each has its channels, and how many
    tokens are left out at the beginning. An extra input of the plan says which channels of each are wanted, (channels
    or None for all, ...), and the grid's size. It gives maps, their means and, `with_std`, their deviations."""

    nodes: tuple[tuple[str, int, int], ...]
    with_std: bool = False


Output = PlanOutput | GridOutput


class FoldedPass:
    """A source's pass with batch norms folded into convolutions, from which plans for single requests are cut.

    `model` holds the numbers and `traced` the graph. The model is never changed; weights that are used as they stand
    are shared with it, and the folded ones among all plans.
    """

    def __init__(self, model: nn.Module, traced: fx.GraphModule, dtype: torch.dtype) -> None:
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._graph.graph_copy(traced.graph, self._made)
        self._parts = _parts(model, self._graph)
        _fold_norms(self._graph, self._parts, self._made, dtype)
        for target, part in self._parts.items():
            self._parts[target] = _frozen(part, dtype)

    def plan(self, outputs: Sequence[Output]) -> fx.GraphModule:
        """A module from images, and an extra input for every output that is not "whole", to a tuple of the outputs.

        Nothing else is run, and values are freed as soon as nothing more is made of them.
        """
        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(self._graph, copied)
        by_name = {node.name: copied[made] for node, made in self._made.items()}
        made = [
            _grid_output(graph, by_name, output)
            if isinstance(output, GridOutput)
            else _output(graph, by_name[output.node], output)
            for output in outputs
        ]
        graph.output(tuple(made))
        plan = forget_text(fx.GraphModule(self._parts, graph))
        plan.graph.eliminate_dead_code()
        plan.delete_all_unused_submodules()
        plan.recompile()
        return forget_text(plan).eval()


def _output(graph: fx.Graph, value: fx.Node, output: PlanOutput) -> fx.Node:
    """Make of a value what is wanted, right where it is computed, so that the rest of it can be freed."""
    if output.kind == "whole":
        return value
    wanted = _input(graph, f"wanted_{value.name}")
    with graph.inserting_after(value):
        return graph.call_function(gather, (value, output.dim, wanted))


def _grid_output(graph: fx.Graph, by_name: dict[str, fx.Node], output: GridOutput) -> fx.Node:
    wanted, pieces = _input(graph, "wanted_grid"), []
    for at, (name, dim, num_prefix) in enumerate(output.nodes):
        with graph.inserting_after(by_name[name]):
            pieces.append(graph.call_function(on_grid, (by_name[name], dim, wanted, at, num_prefix, output.with_std)))
    return graph.call_function(join_channels, (pieces,))


def _input(graph: fx.Graph, name: str) -> fx.Node:
    """One more input of a plan, behind the others."""
    inputs = graph.find_nodes(op="placeholder")
    with graph.inserting_after(inputs[-1]):
        return graph.placeholder(f"{name}_{len(inputs)}")  # several deltas may read one value


def on_grid(x: Tensor, dim: int, wanted: GridWanted, at: int, num_prefix: int, with_std: bool) -> Parts:
    """What is wanted of the value number `at`, without the tokens at its beginning. Its moments are taken here, where
    the maps are still in the cache."""
    maps = to_grid(x[:, num_prefix:] if num_prefix else x, dim, wanted[0][at], wanted[1])
    return maps, *moments(maps, with_std)


def _parts(model: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """Copies of the modules and tensors that a graph names."""
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            parts[str(node.target)] = _copied(model.get_submodule(str(node.target)))
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            parts[str(node.target)] = getattr(model.get_submodule(path), name).detach().clone()
    return parts


def _copied(module: nn.Module) -> nn.Module:
    """A module that can be changed; large weights are shared until they are replaced, so that none is held twice."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return copy.deepcopy(module)
    shallow = copy.copy(module)
    shallow._parameters = dict(module._parameters)
    return shallow


def _fold_norms(graph: fx.Graph, parts: dict[str, Any], made: dict[fx.Node, fx.Node], dtype: torch.dtype) -> None:
    """Fold norms in place; `made` keeps saying which node has the value of which node of the source."""
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for original, node in list(made.items()):
        if node.op != "call_module" or calls[node.target] > 1:
            continue
        norm, before = parts[str(node.target)], node.args[0]
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node):
            continue
        if len(before.users) != 1 or before.op != "call_module":
            continue
        conv = parts[str(before.target)]
        if isinstance(conv, nn.Conv2d) and type(conv).forward in FOLDABLE and calls[before.target] == 1:
            _fold(conv, norm, dtype)
            if isinstance(norm, BatchNormAct2d):
                parts[str(node.target)] = norm.act
            else:
                made[original] = before
                node.replace_all_uses_with(before)
                graph.erase_node(node)


def _frozen(part: Any, dtype: torch.dtype) -> Any:
    """A module or tensor as a plan uses it: of the plan's type, fixed, and never in place."""
    if isinstance(part, Tensor):
        return part.to(dtype) if part.is_floating_point() else part
    for module in part.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)
    return part.eval()


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight, conv.bias = (nn.Parameter(tensor.detach().to(dtype), requires_grad=False) for tensor in folded)
