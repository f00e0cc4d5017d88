"""The methods that are SNOW in all but one thing."""

from __future__ import annotations

import torch
from method_training import CPU, Batches, logits, train

from torchsnow.methods import Snow, make_method
from torchsnow.source import Source, load_source, make_source


def delta_method(name: str, source: Source, seed: int = 0) -> Snow:
    method = make_method(name, source, 3, seed=seed)
    assert isinstance(method, Snow)
    assert method.name == name
    return method


def other_source(source: Source) -> Source:
    """The same network with other weights."""
    model = load_source("test_resnet", "random").model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return make_source(model, source.name, "other")


def test_scratch_reads_nothing_of_the_source(source: Source, batches: Batches) -> None:
    outcomes = []
    for one in (source, other_source(source)):
        method = delta_method("scratch", one)
        train(method, batches)
        outcomes.append(logits(method.model, batches))
    assert torch.equal(*outcomes)
    assert not method.subscription()


def test_snow_does_read_the_source(source: Source, batches: Batches) -> None:
    outcomes = []
    for one in (source, other_source(source)):
        method = delta_method("snow", one)
        train(method, batches)
        outcomes.append(logits(method.model, batches))
    assert not torch.allclose(*outcomes)


def test_a_random_choice_is_never_learned(source: Source, batches: Batches) -> None:
    method = delta_method("random", source)
    before = {name: pool.weight.detach().clone() for name, pool in method.delta.named_pools().items()}
    train(method, batches)
    pools = method.delta.named_pools()
    assert all(torch.equal(pools[name].weight, weight) for name, weight in before.items())
    assert all(int((pool.times_chosen > 0).sum()) == pool.num_pooled for pool in pools.values())
    other = delta_method("random", source, seed=1)
    assert method.subscription() != other.subscription()


def test_side_reads_all_last_features_and_no_tap(source: Source, batches: Batches) -> None:
    method = delta_method("side", source)
    method.start(batches, CPU)
    subscription = method.subscription()
    assert list(subscription) == ["head"]
    assert subscription["head"]["index"] == list(range(source.num_features))
    assert not method.delta.taps
