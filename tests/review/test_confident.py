from __future__ import annotations

import pytest
import torch

from torchsnow.review.confident import held_out_probabilities, likely_wrong, principal_components
from torchsnow.workflows.near_duplicates import standardised


def clusters(num_classes: int = 3, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_classes).repeat_interleave(size)
    return 3 * torch.eye(num_classes)[labels] + torch.randn(len(labels), num_classes, generator=generator) / 2, labels


def test_wrong_labels_are_found_and_the_right_ones_named() -> None:
    values, truth = clusters()
    labels = truth.clone()
    labels[[3, 25, 50]] = torch.tensor([1, 2, 0])
    probabilities = held_out_probabilities(values, labels, torch.arange(len(labels)), 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(labels)))
    rows, likelier = likely_wrong(probabilities, labels)
    assert set(rows.tolist()) == {3, 25, 50}
    assert likelier.tolist() == truth[rows].tolist()


def test_near_duplicates_do_not_vouch_for_each_other() -> None:
    values, truth = clusters(2, 12)
    values[1], labels = values[0], truth.clone()
    labels[:2] = 1
    groups = torch.arange(len(labels))
    groups[1] = 0
    probabilities = held_out_probabilities(values, labels, groups, 2)
    torch.testing.assert_close(probabilities[0], probabilities[1])
    assert {0, 1} <= set(likely_wrong(probabilities, labels)[0].tolist())


def test_the_thresholds_are_those_of_the_formula() -> None:
    probabilities = torch.tensor([[0.9, 0.1]] * 5 + [[0.4, 0.6]] * 4 + [[0.55, 0.45], [0.95, 0.05]])
    labels = torch.tensor([0] * 5 + [1] * 6)
    rows, likelier = likely_wrong(probabilities, labels)
    # the mean of the first class is 0.9, so 0.55 is not confident of it and 0.95 is
    assert (rows.tolist(), likelier.tolist()) == ([10], [0])


def test_classes_with_few_images_are_not_judged() -> None:
    probabilities = torch.tensor([[0.9, 0.1]] * 6 + [[0.95, 0.05]])
    assert likely_wrong(probabilities, torch.tensor([0] * 6 + [1]))[0].tolist() == []


@pytest.mark.parametrize("sizes", [(5, 1), (2, 2), (30, 3)])
def test_rare_classes_are_no_error(sizes: tuple[int, int]) -> None:
    labels = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
    probabilities = held_out_probabilities(torch.randn(len(labels), 4), labels, torch.arange(len(labels)), 2)
    assert probabilities.isfinite().all()


def test_components_keep_what_tells_images_apart() -> None:
    images, many = torch.randn(45, 600, generator=torch.Generator().manual_seed(0)).split([40, 5])
    images = standardised(images[:, :30])
    components = principal_components(images)
    assert components.shape == (40, 30)
    torch.testing.assert_close(components.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(torch.cdist(components, components), torch.cdist(images, images), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(components, principal_components(images), atol=0, rtol=0)
    assert principal_components(standardised(many)).shape == (5, 5)
