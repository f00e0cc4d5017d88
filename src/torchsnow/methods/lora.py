"""LoRA on the dense convolutions and linear layers, through the PEFT library.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; for a convolution the first factor has the
convolution's kernel and the second is 1x1.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from torchsnow.errors import TrainingError
from torchsnow.methods.network import NetworkMethod
from torchsnow.source.source import Source

RANK = 8
_ALPHA = 16  # the update is scaled by alpha / rank
_TYPES = (nn.Conv2d, nn.Linear)


def make_lora(source: Source, num_classes: int, seed: int) -> NetworkMethod:
    """Low-rank updates of rank 8 of every layer that can take one, and a new last layer.

    Grouped and depthwise convolutions, and those that change their weight or padding in their forward, stay as they
    are. Raises TrainingError when nothing is left, or without the PEFT library.
    """
    peft = _peft()
    layers = lora_layers(source)
    settings = peft.LoraConfig(r=RANK, lora_alpha=_ALPHA, lora_dropout=0.0, target_modules=layers)
    return NetworkMethod(
        "lora",
        source,
        num_classes,
        seed,
        lives=lambda name: ".lora_" in name,
        prepare=lambda network: peft.inject_adapter_in_model(settings, network),
    )


def lora_layers(source: Source) -> list[str]:
    """Names of the layers that get an update. Raises TrainingError when there are none."""
    layers = [name for name, part in source.model.named_modules() if type(part) in _TYPES and _is_dense(part)]
    if not layers:
        raise TrainingError(
            f"LoRA needs plain dense convolutions or linear layers, and {source.name} has none: its convolutions are "
            "depthwise, grouped, or change their weight in their forward; choose another method"
        )
    return layers


def _is_dense(part: nn.Module) -> bool:
    return not isinstance(part, nn.Conv2d) or part.groups == 1


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise TrainingError("the method 'lora' needs the PEFT library: pip install 'torchsnow[lora]'") from error
    return peft
