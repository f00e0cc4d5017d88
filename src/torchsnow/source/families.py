"""Which families of timm can be sources, and one small model of each.

A family is a module of timm (`timm.models.resnet`, ...). A family counts as convolutional when at least one of its
models mixes positions by convolution and pooling alone. Networks with attention between positions are sources for
grid deltas and heads, but not for narrow copies: no layer of attention can be made narrow.
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

ATTENTIVE: dict[str, str] = {
    "beit": "beit_base_patch16_224",
    "deit": "deit_tiny_distilled_patch16_224",
    "efficientvit_mit": "efficientvit_b0",
    "eva": "eva02_tiny_patch14_224",
    "maxxvit": "maxvit_tiny_tf_224",
    "mobilevit": "mobilevit_xxs",
    "pvt_v2": "pvt_v2_b0",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "tiny_vit": "tiny_vit_5m_224",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vitamin": "vitamin_small_224",
    "xcit": "xcit_nano_12_p8_224",
}
"""timm's transformers and hybrids that are sources for grid deltas, each with the model that stands for it in
docs/sources.md. ViT, DeiT III, DINOv2, and the image towers of CLIP and SigLIP are `vision_transformer`."""

_HYBRID = "a hybrid of convolution and attention"


def _all(families: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(families.split(), kind)


OTHER: dict[str, str] = {
    **_all(
        "cait convit crossvit deepseek_vit gcvit gemma4_vit hiera hieradet_sam2 mvitv2 naflexvit nest pit qwen3_vit "
        "swin_transformer_v2_cr tnt vision_transformer_sam volo",
        "a vision transformer",
    ),
    **_all(
        "byoanet coat cpubone csatv2 davit edgenext efficientformer efficientformer_v2 efficientvit_msra iformer levit "
        "mobilenetv5 nextvit shvit swiftformer twins visformer",
        _HYBRID,
    ),
    "efficientvim": "a state-space model",
    "mlp_mixer": "an MLP mixer",
    "sequencer": "a recurrent network",
}
"""timm's other families, each with what it is."""

_HIDDEN = "SelfAttnBlock"  # of byobnet: its attention hides its convolutions


def family_of(model: nn.Module) -> str:
    """The timm module that defines a model's class."""
    return type(model).__module__.rpartition(".")[2]


def unlisted_families() -> list[str]:
    """Families of the installed timm that no table names."""
    return sorted(set(list_modules()) - set(CONVOLUTIONAL) - set(ATTENTIVE) - set(OTHER))


def validate_kind(model: nn.Module, name: str) -> None:
    """Raise SourceError, with the reason, for a timm model of a kind that has not been tried as a source."""
    kind = OTHER.get(family_of(model))
    if kind is None and any(type(part).__name__ == _HIDDEN for part in model.modules()):
        kind = f"{_HYBRID} (it has {_HIDDEN} layers)"
    if kind is not None:
        raise SourceError(
            f"{name} cannot be a source: it is {kind}, of a family that does not work or has not been tried; "
            "`torchsnow sources` lists those that work"
        )
