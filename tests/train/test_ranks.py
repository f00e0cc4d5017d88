"""What one of several processes computes; `tests/cli/test_torchrun.py` starts them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_method import Tiny
from torch import Tensor, nn

from torchsnow.data import Splits
from torchsnow.errors import TrainingError
from torchsnow.train import TrainSettings
from torchsnow.train.batches import RunImages, num_batches, run_images, shuffled_batches
from torchsnow.train.ranks import Ranks
from torchsnow.train.step import Stepper


class Told(Ranks):
    """A process that knows what the others weigh."""

    def sum(self, values: Tensor) -> Tensor:
        return values.new_tensor(self.__dict__["weights"])


@pytest.fixture
def images(tiny: Tiny, splits: Splits, settings: TrainSettings) -> RunImages:
    return run_images(splits, tiny.input_config, settings)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_gradients_of_unequal_shares_have_the_mean_of_the_whole_batch(
    class_weights: str, tiny: Tiny, images: RunImages, settings: TrainSettings
) -> None:
    settings = replace(settings, class_weights=class_weights)  # type: ignore[arg-type]
    pixels, labels = torch.randn(7, 3, 8, 8), torch.tensor([0, 1, 1, 1, 1, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    tiny.model = model

    def gradient(ranks: Ranks) -> Tensor:
        stepper = Stepper(tiny, images.train, replace(settings, lr=1e-12), ranks)
        weights = labels.new_ones(7).float() if stepper._weights is None else stepper._weights[labels]
        vars(ranks)["weights"] = float(weights.sum())
        found: list[Tensor] = []
        model[1].weight.register_post_accumulate_grad_hook(lambda weight: found.append(weight.grad.clone()))
        stepper.step(model, ranks.share(pixels), ranks.share(labels), 1.0)
        return found[0]

    whole = gradient(Ranks())
    parts = [gradient(Told(rank, 2)) for rank in range(2)]
    torch.testing.assert_close(sum(parts) / 2, whole)


@pytest.mark.parametrize("num_images", range(8, 60))
def test_every_process_has_two_images_of_every_batch(num_images: int) -> None:
    ranks = [Ranks(rank, 3) for rank in range(3)]
    batches = shuffled_batches(num_images, 8, torch.Generator().manual_seed(0), ranks[0].least_batch)
    assert len(batches) == num_batches(num_images, 8, ranks[0].least_batch)
    for batch in batches:
        shares = [one.share(batch) for one in ranks]
        assert min(map(len, shares)) >= 2
        assert sorted(index for share in shares for index in share) == sorted(batch)


def test_too_small_a_batch_is_refused() -> None:
    Ranks(0, 3).validate_sizes(6, 6)
    with pytest.raises(TrainingError, match=r"batch_size is 5, with 90 images to train on.*use 6 or more"):
        Ranks(0, 3).validate_sizes(5, 90)
    with pytest.raises(TrainingError, match="with 5 images to train on"):
        Ranks(0, 3).validate_sizes(8, 5)


def test_other_errors_than_the_end_of_a_process_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="of our own"), Ranks(0, 2).watched():
        raise RuntimeError("of our own")
    with pytest.raises(TrainingError, match="another of the 2 processes was ended"), Ranks(0, 2).watched():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
