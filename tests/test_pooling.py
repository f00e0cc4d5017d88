from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchsnow.errors import DeltaError
from torchsnow.pooling import ChannelPooling, Subscription, num_pooled


def pooled_by_the_formula(x: Tensor, w: Tensor, v: Tensor, m: int, dim: int) -> Tensor:
    """One channel at a time: the largest value of v not yet taken, the first of equals, scaled by its w."""
    left = v.tolist()
    channels = []
    for _ in range(m):
        best = left.index(max(left))
        channels.append(x.select(dim, best) * w[best])
        left[best] = float("-inf")
    return torch.stack(channels, dim)


def make_pool(weights: Tensor, m: int, dim: int = 1, sigma: float = 0.0) -> ChannelPooling:
    pool = ChannelPooling(len(weights), m, dim)
    pool.sigma = sigma
    with torch.no_grad():
        pool.weight.copy_(weights)
    return pool


SPREAD = torch.tensor([0.3, -1.0, 2.0, 0.9, 1.4, -0.2, 0.8, 1.1])


@pytest.mark.parametrize(("shape", "dim"), [((2, 8, 3, 4), 1), ((2, 3, 4, 8), 3), ((2, 12, 8), 2)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("weights", [SPREAD, SPREAD.round()], ids=["distinct", "ties"])
def test_forward_and_gradients_are_those_of_the_formula(
    shape: tuple[int, ...], dim: int, training: bool, sigma: float, weights: Tensor
) -> None:
    pool = make_pool(weights, 3, dim, sigma).train(training)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*(3 if d == dim else size for d, size in enumerate(shape)))
    for seed in range(5):
        torch.manual_seed(seed)
        noise = sigma * torch.randn(len(weights))
        w = weights.clone().requires_grad_()
        expected = pooled_by_the_formula(x, w, weights + noise if training else weights, 3, dim)
        expected_grads = torch.autograd.grad(expected, (x, w), upstream)

        torch.manual_seed(seed)
        y = pool(x)
        grads = torch.autograd.grad(y, (x, pool.weight), upstream)
        assert torch.equal(y, expected)
        assert torch.equal(grads[0], expected_grads[0])
        torch.testing.assert_close(grads[1], expected_grads[1])


def test_noise_chooses_but_does_not_scale() -> None:
    pool = make_pool(torch.ones(6), 2, sigma=5.0)
    y = pool(torch.full((1, 6, 2, 2), 3.0))
    assert torch.equal(y, torch.full((1, 2, 2, 2), 3.0))


def test_noise_is_drawn_anew_at_every_training_forward_and_never_in_evaluation() -> None:
    torch.manual_seed(0)
    pool = make_pool(torch.ones(16), 4, sigma=1.0)
    assert len({tuple(pool.choose().tolist()) for _ in range(20)}) > 15
    pool.eval()
    assert {tuple(pool.choose().tolist()) for _ in range(20)} == {(0, 1, 2, 3)}


def test_equal_weights_are_taken_in_channel_order() -> None:
    assert ChannelPooling(2048, 256).eval().choose().tolist() == list(range(256))


def test_the_strongest_channel_comes_first() -> None:
    assert make_pool(SPREAD, 4).eval().choose().tolist() == [2, 4, 7, 3]


def test_the_same_seed_gives_the_same_choices() -> None:
    def choices() -> list[list[int]]:
        torch.manual_seed(3)
        pool = make_pool(SPREAD, 3, sigma=1.0)
        return [pool.choose().tolist() for _ in range(10)]

    assert choices() == choices()


def test_the_weight_is_a_parameter_and_only_chosen_channels_get_gradient() -> None:
    pool = make_pool(SPREAD, 2)
    assert isinstance(pool.weight, nn.Parameter)
    assert [name for name, _ in pool.named_parameters()] == ["weight"]
    assert set(pool.state_dict()) == {"weight", "times_chosen"}
    pool(torch.rand(2, 8, 3, 3) + 0.5).sum().backward()
    assert pool.weight.grad is not None
    assert pool.weight.grad.nonzero().flatten().tolist() == [2, 4]


def test_optimisation_changes_the_selection() -> None:
    torch.manual_seed(0)
    pool = make_pool(torch.ones(8), 2, sigma=0.3)
    assert sorted(pool.eval().choose().tolist()) == [0, 1]
    pool.train()
    optimizer = torch.optim.SGD(pool.parameters(), lr=0.1)
    x = torch.full((1, 8, 1, 1), -1.0)
    x[:, [5, 6]] = 1.0  # the loss falls with the weight of these two alone
    for _ in range(60):
        optimizer.zero_grad()
        (-pool(x).sum()).backward()
        optimizer.step()
    assert sorted(pool.eval().choose().tolist()) == [5, 6]


def test_noise_far_below_the_spread_never_changes_a_selection() -> None:
    torch.manual_seed(0)
    pool = make_pool(SPREAD, 3, sigma=1e-4)
    for _ in range(200):
        pool.choose()
    assert pool.times_chosen.tolist() == [0, 0, 200, 0, 200, 0, 0, 200]


def test_noise_of_the_size_of_the_spread_tries_other_channels() -> None:
    torch.manual_seed(0)
    pool = make_pool(SPREAD, 3, sigma=1.0)
    for _ in range(200):
        pool.choose()
    assert (pool.times_chosen > 0).all()
    assert int(pool.times_chosen.sum()) == 3 * 200


def test_only_training_forwards_are_counted() -> None:
    pool = make_pool(SPREAD, 3)
    pool(torch.randn(1, 8, 2, 2))
    pool.eval()(torch.randn(1, 8, 2, 2))
    assert pool.times_chosen.tolist() == [0, 0, 1, 0, 1, 0, 0, 1]


def test_taken_channels_are_not_yet_scaled() -> None:
    x = torch.randn(2, 2, 3, 3)
    pool = make_pool(SPREAD, 2).eval()
    idx = pool.choose()
    picked = pool.take(x, idx)
    assert picked.x is x
    assert picked.weight.tolist() == pytest.approx([2.0, 1.4])
    assert picked.idx is idx


@pytest.mark.parametrize("pooled", [0, 9, -1])
def test_impossible_numbers_of_channels_are_refused(pooled: int) -> None:
    with pytest.raises(DeltaError, match=rf"cannot pool {pooled} of 8 channels; expected 1 to 8"):
        ChannelPooling(8, pooled)


@given(chs=st.integers(1, 10_000), divisor=st.integers(1, 20_000))
def test_the_width_rule(chs: int, divisor: int) -> None:
    width = num_pooled(chs, divisor)
    assert width == max(1, round(chs / divisor))
    assert 1 <= width <= chs
    assert num_pooled(chs + 1, divisor) >= width


@pytest.mark.parametrize("divisor", [0, -8])
def test_divisors_below_one_are_refused(divisor: int) -> None:
    with pytest.raises(DeltaError, match=f"a divisor of {divisor} was given"):
        num_pooled(64, divisor)


@pytest.mark.parametrize(("shape", "dim"), [((2, 8, 3, 4), 1), ((2, 3, 4, 8), 3)])
def test_a_subscription_with_the_chosen_channels_equals_the_pool(shape: tuple[int, ...], dim: int) -> None:
    pool = make_pool(SPREAD, 3, dim).eval()
    fixed = Subscription(8, 3, dim)
    index = pool.choose()
    fixed.load_state_dict({"index": index, "weight": pool.weight.detach()[index]})
    x = torch.randn(shape)
    assert torch.equal(fixed.train()(x), pool(x))
    assert fixed.choose().tolist() == index.tolist()
    assert fixed.take(x, index).idx is None  # its reader has a column per chosen channel only
    assert [name for name, _ in fixed.named_parameters()] == ["weight"]
