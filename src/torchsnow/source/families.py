"""Which families of timm are convolutional networks, and one small model of each.

A family is a module of timm (`timm.models.resnet`, ...). A family counts as convolutional when at least one of its
models mixes positions by convolution and pooling alone; models of such a family that use attention between
positions are refused one by one.
"""

from __future__ import annotations

from timm.models import list_modules
from torch import nn

from torchsnow.errors import SourceError

CONVOLUTIONAL: dict[str, str] = {
    "byobnet": "resnext26ts",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto",
    "cspnet": "cspresnet50",
    "cspnext": "cspnext_tiny",
    "densenet": "densenet121",
    "dla": "dla34",
    "dpn": "dpn68",
    "efficientnet": "efficientnet_b0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_100",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "lowformer": "lowformer_e1",
    "mambaout": "mambaout_femto",
    "metaformer": "convformer_s18",
    "mobilenetv3": "mobilenetv3_small_050",
    "nasnet": "nasnetalarge",
    "nfnet": "nfnet_l0",
    "pnasnet": "pnasnet5large",
    "rdnet": "rdnet_tiny",
    "regnet": "regnety_004",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_26w_4s",
    "resnest": "resnest14d",
    "resnet": "resnet18",
    "resnetv2": "resnetv2_50",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "tresnet": "tresnet_m",
    "vgg": "vgg11",
    "vovnet": "ese_vovnet19b_slim",
    "xception": "legacy_xception",
    "xception_aligned": "xception41",
}
"""timm's convolutional families, each with the model that stands for it in docs/sources.md."""

_HYBRID = "a hybrid of convolution and attention"


def _all(families: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(families.split(), kind)


OTHER: dict[str, str] = {
    **_all(
        "beit cait convit crossvit deepseek_vit deit eva gcvit gemma4_vit hiera hieradet_sam2 mvitv2 naflexvit nest "
        "pit qwen3_vit swin_transformer swin_transformer_v2 swin_transformer_v2_cr tnt vision_transformer "
        "vision_transformer_relpos vision_transformer_sam volo xcit",
        "a vision transformer",
    ),
    **_all(
        "byoanet coat cpubone csatv2 davit edgenext efficientformer efficientformer_v2 efficientvit_mit "
        "efficientvit_msra iformer levit maxxvit mobilenetv5 mobilevit nextvit pvt_v2 shvit swiftformer tiny_vit "
        "twins visformer vision_transformer_hybrid vitamin",
        _HYBRID,
    ),
    "efficientvim": "a state-space model",
    "mlp_mixer": "an MLP mixer",
    "sequencer": "a recurrent network",
}
"""timm's other families, each with what it is."""

# Layers that mix positions by attention, in families that also have models without them.
_ATTENTION_LAYERS = {"Attention", "AttentionBlock", "ConvAttention", "MobileAttention", "SelfAttnBlock"}


def family_of(model: nn.Module) -> str:
    """The timm module that defines a model's class."""
    return type(model).__module__.rpartition(".")[2]


def unlisted_families() -> list[str]:
    """Families of the installed timm that neither table names."""
    return sorted(set(list_modules()) - set(CONVOLUTIONAL) - set(OTHER))


def refuse_other_kinds(model: nn.Module, name: str) -> None:
    """Raise SourceError, with the reason, for a timm model that is not a convolutional network."""
    kind = OTHER.get(family_of(model))
    if kind is None:
        attention = [type(part).__name__ for part in model.modules() if type(part).__name__ in _ATTENTION_LAYERS]
        if attention:
            kind = f"{_HYBRID} (it has {attention[0]} layers)"
    if kind is not None:
        raise SourceError(
            f"{name} cannot be a source: it is {kind}, and torchsnow takes convolutional networks only; "
            "`torchsnow sources` lists those that work"
        )
