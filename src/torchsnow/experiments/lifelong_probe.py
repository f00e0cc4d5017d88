"""What a network's features are worth for a task that it has not learned yet."""

from __future__ import annotations

import torch
from torch import nn

from torchsnow.data import ImageSet
from torchsnow.methods.probe import MAX_IMAGES, fit_probe
from torchsnow.train.evaluate import predict


def probe_accuracy(
    features: nn.Module, train: ImageSet, test: ImageSet, batch_size: int, device: torch.device
) -> float:
    """Test accuracy of a logistic regression over features (B, num_features) of the training images, 20,000 at most.

    `features` is put into eval mode. The features are standardised by those of the training images.
    """
    features.to(device).eval()
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:MAX_IMAGES]
    known, labels = predict(features, train.subset(drawn.sort().values.tolist()), batch_size, device)
    asked, truths = predict(features, test, batch_size, device)
    center, spread = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    weight, bias = fit_probe((known - center) / spread, labels, len(train.classes))
    predicted = ((asked - center) / spread @ weight.T + bias).argmax(1)
    return float((predicted == truths).float().mean())
