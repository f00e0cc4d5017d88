"""Last layer only (FO): a linear layer over the source's last features."""

from __future__ import annotations

import torch

from torchsnow.methods.linear import LinearMethod
from torchsnow.methods.probe import MAX_IMAGES
from torchsnow.source.source import Source
from torchsnow.train.batches import RunImages, plain_loader
from torchsnow.train.evaluate import Metrics, evaluate
from torchsnow.train.settings import TrainSettings


def make_head(source: Source, num_classes: int, probe: bool) -> LinearMethod:
    """Trained from zero, or from the logistic regression over the same features (`probe`)."""
    return LinearMethod("head", source, num_classes, probe=probe)


def probe_metrics(source: Source, images: RunImages, settings: TrainSettings) -> Metrics:
    """How good a linear probe is on the validation images: the least that a trained task should reach.

    The probe is the logistic regression over the source's last features of the plain training images, of which at
    most `MAX_IMAGES` are drawn by the seed. One source pass over them and over the validation images.
    """
    device = settings.torch_device()
    method = make_head(source, len(images.plain.classes), probe=True)
    method.model.to(device)
    order = torch.randperm(len(images.plain), generator=torch.Generator().manual_seed(settings.seed))
    drawn = images.plain.subset(order[:MAX_IMAGES].sort().values.tolist())
    method.start(plain_loader(drawn, settings), device)
    return evaluate(method.model, images.val, images.val.classes, settings.batch_size, device)
