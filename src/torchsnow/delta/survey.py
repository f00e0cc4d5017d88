"""Which of timm's families can be a source, and what a delta costs there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import timm
import torch

from torchsnow.delta.cost import delta_cost, source_cost, within_budget
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import TorchsnowError
from torchsnow.source.families import ATTENTIVE, CONVOLUTIONAL, OTHER, family_of
from torchsnow.source.load import make_source, timm_name, without_numbers

_CLASSES = 10
_SPEC = DeltaSpec(_CLASSES, width_divisor=None, grid_width=96, global_pool="catavgmax", head_std=True, head_divisor=8)
_BUDGET = 0.04  # of the source's multiply-adds, as in the default preset


@dataclass(frozen=True)
class Row:
    """One model: its taps, and a delta's learned numbers and multiply-adds as shares of the source's.

    `reason` says why it cannot be a source, and is None where it can; the figures are None where it cannot.
    """

    family: str
    model: str
    num_taps: int | None = None
    params_share: float | None = None
    multiply_adds_share: float | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def survey_model(name: str) -> Row:
    """Make a delta (10 classes, as the default preset makes it) without numbers.

    Raises SourceError for a name that timm does not know.
    """
    name = timm_name(name)
    model = without_numbers(name, num_classes=0)
    with torch.device("meta"):
        family = family_of(model)
        try:
            source = make_source(model, name, "none")
            whole, delta = source_cost(source), delta_cost(source, within_budget(source, _SPEC, _BUDGET))
        except TorchsnowError as error:
            return Row(family, name, reason=str(error))
    params, multiply_adds = delta.num_params / whole.num_params, delta.multiply_adds / whole.multiply_adds
    return Row(family, name, len(source.taps), round(params, 4), round(multiply_adds, 4))


def survey_families() -> Iterator[Row]:
    """One model of every convolutional and attentive family, then every other family with what it is."""
    for family, name in {**CONVOLUTIONAL, **ATTENTIVE}.items():
        yield Row(**{**asdict(survey_model(name)), "family": family})
    for family, kind in sorted(OTHER.items()):
        yield Row(family, "", reason=kind)


def to_markdown(rows: Sequence[Row]) -> str:
    """The page docs/sources.md."""
    tried = [row for row in rows if row.family in CONVOLUTIONAL]
    working = [row for row in tried if row.reason is None]
    others = [row for row in rows if row.family in OTHER]
    attentive = [row for row in rows if row.family in ATTENTIVE]
    refused = "\n".join(f"| {row.family} | {row.reason} |" for row in others)
    return f"""# Which networks can be a source

Written by `torchsnow sources --markdown`, with timm {timm.__version__}; do not edit by hand.

A family is a module of timm. It counts as convolutional when at least one of its models mixes positions by
convolution and pooling alone: {len(tried)} families, of which {len(working)} work
({100 * len(working) / len(tried):.0f}%).
One small model of each is below with a delta of the default preset for {_CLASSES} classes; parameters and multiply-adds
are those of the delta that ships, its head included, in percent of the source's. (Parameters are stored in a byte each:
a task has about a quarter of that share of the source's bytes.) `torchsnow sources NAME` tells the same of any other
model.

| family | model | taps | parameters, % | multiply-adds, % |
|---|---|---|---|---|
{_table(tried)}

A delta is as wide as 4% of the multiply-adds allow, 32 at least and 96 at most; on the smallest networks the least
exceeds the 4%.

## Transformers and hybrids

Networks with attention between positions are sources for grid deltas and heads, but not for narrow copies (the preset
`paper`, and the methods `scratch`, `random` and `side`): no layer of attention can be made narrow. Their tokens are a
map, class tokens and registers left out; what is read inside attention is no tap. Most of them take images of their own
size alone (224 pixels; 518 for DINOv2), which `train` then uses.

| family | model | taps | parameters, % | multiply-adds, % |
|---|---|---|---|---|
{_table(attentive)}

`vision_transformer` is ViT, DeiT III, DINOv2, and the image towers of CLIP and SigLIP; `maxxvit` is MaxViT and CoAtNet.
Hybrids in the first table's families, like `fastvit_sa12`, `caformer_s18` and `mobilenetv4_hybrid_medium`, work alike.

## What cannot be a source

These families do not work or have not been tried, and are refused by name:

| family | what it is |
|---|---|
{refused}
"""


def _table(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"| {row.family} | {row.model} | {row.num_taps} | {100 * (row.params_share or 0):.1f} "
        f"| {100 * (row.multiply_adds_share or 0):.1f} |"
        if row.reason is None
        else f"| {row.family} | {row.model} | - | - | - ({row.reason}) |"
        for row in rows
    )
