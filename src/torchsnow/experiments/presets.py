"""Experiments that come with the package."""

from __future__ import annotations

from torchsnow.experiments.plan import Experiment


def paper_experiment() -> Experiment:
    """The paper's table of transfer learning (section 4.2): its source, its five data sets, FT, FE, FO and SNOW.

    The budget is ours, and equal for all methods.
    """
    return Experiment(
        "paper",
        data=("food101", "dtd", "action40", "cars", "cub200"),
        methods=("full", "features", "head", "snow:paper", "snow"),
        sources=("resnet50.tv_in1k",),
        epochs=30,
        image_size=224,
        batch_size=64,
        augmentation="light",
    )


def smoke_experiment() -> Experiment:
    """A few methods on a few images, to see that the whole way works; its figures mean nothing."""
    return Experiment(
        "smoke",
        data=("digits",),
        methods=("full", "head", "taps", "snow:paper", "snow"),
        seeds=(0, 1),
        epochs=1,
        image_size=32,
        batch_size=16,
        augmentation="none",
        lr_tries=2,
        train_images=60,
        val_images=40,
        test_images=60,
        remark="A trial run on a few tiny images: its figures mean nothing.",
    )
