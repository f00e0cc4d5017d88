"""A whole network as a method: a copy of the source's, with a new last layer, of which some or all parts train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from torchsnow.delta.cost import source_cost
from torchsnow.errors import TrainingError
from torchsnow.methods.linear import LinearMethod
from torchsnow.methods.plain import PlainMethod, decayed_groups, load_living
from torchsnow.source.source import Source
from torchsnow.train.contract import Batches, TaskCost

Lives = Callable[[str], bool]
"""Whether the part of a network with this name trains, by itself: its parts are asked for on their own."""


class Network(nn.Module):
    """Images (B, 3, H, W), normalised -> logits (B, num_classes): a network's pooled features and a linear layer.

    Parts that do not live get no gradient, and stay in eval mode: a frozen batch norm keeps its statistics. With
    `frozen_norms` all batch norms keep theirs, though their scales and shifts may train.
    """

    def __init__(self, body: nn.Module, source: Source, num_classes: int, lives: Lives, frozen_norms: bool) -> None:
        super().__init__()
        layout = torch.channels_last if source.prefers_channels_last else torch.contiguous_format
        self.body: nn.Module = body.to(memory_format=layout)
        self.fc = nn.Linear(source.num_features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self._lives, self._layout, self._frozen_norms = lives, layout, frozen_norms
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(lives(name.rpartition(".")[0]))
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Train mode for the parts that live, and eval mode for the rest."""
        super().train(mode)
        for name, part in self.body.named_modules():
            frozen = self._frozen_norms and isinstance(part, nn.modules.batchnorm._BatchNorm)
            part.training = mode and self._lives(name) and not frozen
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(images.contiguous(memory_format=self._layout)))
        return logits

    def living_state(self) -> dict[str, Tensor]:
        """The parameters and buffers of the parts that live, and of the last layer."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith("fc.") or self._lives(name.removeprefix("body.").rpartition(".")[0])
        }


class NetworkMethod(PlainMethod):
    """A method of transfer learning that trains parts of the network itself, behind `torchsnow.train.Method`.

    `prepare` changes the copy of the network, where a method needs that, before it is asked which parts `lives`.
    `cost` is what a first and a further task cost; None: all of the network each. The preset "frozen-bn" keeps the
    statistics of all batch norms, and "probe" does too and starts with a linear probe as the last layer, so that
    training begins with features that it has no cause to distort (LP-FT: Kumar et al., "Fine-Tuning can Distort
    Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
    """

    def __init__(
        self,
        name: str,
        source: Source,
        num_classes: int,
        seed: int,
        lives: Lives,
        prepare: Callable[[nn.Module], Any] | None = None,
        cost: TaskCost | None = None,
        preset: str = "default",
    ) -> None:
        if source.precision != "fp32":
            raise TrainingError(
                f"the source was loaded in {source.precision}, which is for methods that keep it frozen; {name!r} "
                "trains the network itself: use fp32, and on CUDA --amp"
            )
        self.name, self.source, self.seed, self.preset = name, source, seed, preset
        self.input_config = source.input_config
        body = copy.deepcopy(source.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if prepare is not None:
                prepare(body)
            self.model = Network(body, source, num_classes, lives, preset in ("frozen-bn", "probe"))
        self._cost = cost

    def config(self) -> dict[str, Any]:
        """The source that the network is a copy of."""
        return {"name": self.name, "source": self.source.identity(), "seed": self.seed, "preset": self.preset}

    @property
    def starts_as_probe(self) -> bool:
        """Whether its preset says so."""
        return self.preset == "probe"

    def start(self, images: Batches, device: torch.device) -> None:
        """With the preset "probe" one source pass, and the last layer as the logistic regression over the features."""
        if not self.starts_as_probe:
            return
        probe = LinearMethod("head", self.source, self.model.fc.out_features, probe=True)
        probe.model.to(device)
        probe.start(images, device)
        values, layer = probe.values, probe.model.layer
        weight = layer.weight.detach() * values.scale / values.spread
        with torch.no_grad():
            self.model.fc.weight.copy_(weight)
            self.model.fc.bias.copy_(layer.bias - weight @ values.center)

    def frozen_part(self, image_size: int) -> None:
        """None: the trained part has no fixed values before it that are worth keeping."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """All parameters that train; norms and biases without weight decay."""
        return decayed_groups(self.model, lr, weight_decay)

    def trainable_state(self) -> dict[str, Tensor]:
        """The parts of the network that train, with their statistics, and the last layer."""
        return self.model.living_state()

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `trainable_state` gave. Raises TrainingError when it is of another network."""
        load_living(self.model, self.trainable_state(), state)

    def multiply_adds(self) -> TaskCost:
        """A network of its own, for the first task as for every other, unless the method says otherwise."""
        own = source_cost(self.source).multiply_adds
        cost = self._cost or TaskCost(own, own)
        return TaskCost(cost.first + self.model.fc.weight.numel(), cost.added + self.model.fc.weight.numel())

    def finish(self) -> nn.Module:
        """The network in eval mode."""
        return self.model.eval()
