from __future__ import annotations

import torch

from torchsnow.review.values import principal_components, standardised


def values(num: int = 40, size: int = 30) -> torch.Tensor:
    return 3 + torch.randn(num, size, generator=torch.Generator().manual_seed(0))


def test_constant_features_count_as_nothing() -> None:
    images = values()
    images[:, 3] = 5
    assert standardised(images)[:, 3].tolist() == [0] * 40
    torch.testing.assert_close(standardised(images)[:, 4].std(unbiased=False), torch.tensor(1.0))


def test_components_keep_what_tells_images_apart() -> None:
    images = standardised(values())
    components = principal_components(images)
    assert components.shape == (40, 30)
    torch.testing.assert_close(components.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(torch.cdist(components, components), torch.cdist(images, images), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(components, principal_components(images), atol=0, rtol=0)
    assert principal_components(standardised(values(5, 600))).shape == (5, 5)
