"""The grid delta against its formula, written again here, and as it settles, folds, is stored and served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.cost import (
    GRID_WIDTH_STEP,
    LEAST_GRID_WIDTH,
    delta_cost,
    size_bytes,
    source_cost,
    within_budget,
)
from torchsnow.delta.fold import fold
from torchsnow.delta.grid import GridBody, frozen_state
from torchsnow.delta.head import Head
from torchsnow.engines import DeltaRequest, Engine, Program
from torchsnow.errors import DeltaError, TaskFileError
from torchsnow.hub import Hub
from torchsnow.model import SnowModel
from torchsnow.pooling import num_pooled
from torchsnow.source import Framing, Request, Source, load_source
from torchsnow.task_file import encode_task, load_task, make_task, save_task

SPEC = DeltaSpec(
    3, width_divisor=None, grid_width=8, grid_blocks=2, global_pool="catavgmax", head_std=True, head_divisor=4
)
IMAGES = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
ROUNDING = 3e-2  # what is lost where the matrices of a frozen delta are rounded to a byte per number


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def worn(source: Source, spec: DeltaSpec = SPEC, seed: int = 0) -> Delta:
    """An open delta as after some training: subscribed, every number moved, statistics gathered."""
    torch.manual_seed(seed)
    delta = Delta(source, spec).eval()
    pool = delta.grid_pool
    assert pool is not None
    delta.subscribe(torch.randperm(pool.num_chs)[: pool.num_pooled].sort().values, torch.rand(pool.num_pooled) + 0.5)
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            if not name.startswith("pools."):
                parameter.add_(0.2 * torch.randn_like(parameter))
        for part in delta.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.5, 2)
        if isinstance(delta.head, Head):
            delta.head.freeze_probe()
            delta.head.mix(0.7, 0.4)
            delta.head.center.normal_()
            delta.head.spread.uniform_(0.5, 2)
    return delta


def answers(source: Source, delta: Delta, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        logits: Tensor = SnowModel(source, delta.eval())(images)
    return logits


def near(given: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


def formula(state: Mapping[str, Tensor], x: Tensor, w: Tensor, num_blocks: int) -> Tensor:
    """What delta/grid.py says of a body in training, with the batch norms written out."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def layer(name: str, x: Tensor) -> Tensor:
        return norm(f"{name}.1", F.conv2d(x, state[f"{name}.0.weight"][:, :, None, None]))

    def depthwise(name: str, x: Tensor) -> Tensor:
        x = F.conv2d(x, state[f"{name}.depthwise.weight"], padding=1, groups=x.shape[1])
        return norm(f"{name}.norm", x)

    x = F.gelu(layer("stem", x * w.view(1, -1, 1, 1)))
    for i in range(num_blocks):
        inner = F.gelu(layer(f"blocks.{i}.expand", x))
        x = x + layer(f"blocks.{i}.project", F.gelu(depthwise(f"blocks.{i}", inner)))
    x = F.gelu(layer("gather", x))
    return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def test_a_body_is_its_formula_forward_and_backward() -> None:
    torch.manual_seed(0)
    body = GridBody(num_chs=7, width=4, num_blocks=2, global_pool="catavgmax", frozen=False).double().train()
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.5)  # the last norm of a block, too, which starts at 0
    x = torch.randn(3, 7, 4, 5, dtype=torch.float64, requires_grad=True)
    w = torch.rand(7, dtype=torch.float64).requires_grad_()
    given, expected = body(x, w), formula(dict(body.named_parameters()), x, w, 2)
    near(given, expected)
    assert given.shape == (3, body.num_features) == (3, 32)
    upstream, leaves = torch.randn_like(given), [x, w, *body.parameters()]
    both = zip(*(torch.autograd.grad(y, leaves, upstream) for y in (given, expected)), strict=True)
    for gradient, of_formula in both:
        near(gradient, of_formula)
        assert gradient.abs().sum() > 0


def test_without_the_maximum_a_body_gives_the_means_alone() -> None:
    body = GridBody(7, 4, 1, "catavgmax", frozen=True)
    means = GridBody(7, 4, 1, "avg", frozen=True)
    means.load_state_dict(body.state_dict())
    x, w = torch.randn(3, 7, 4, 5), torch.rand(7)
    assert torch.equal(means(x, w), body(x, w)[:, :16])


def test_maps_laid_out_channel_by_channel_give_the_same() -> None:
    body = GridBody(7, 4, 1, "avg", frozen=True)
    x, w = torch.randn(3, 7, 4, 5), torch.rand(7)
    expected = body(x, w)
    near(body(x.transpose(0, 1).contiguous().transpose(0, 1), w), expected)
    near(body(x.contiguous(memory_format=torch.channels_last), w), expected)


def test_a_frozen_body_gives_what_the_trained_one_gives_in_eval_mode() -> None:
    torch.manual_seed(0)
    body, frozen = (GridBody(7, 4, 2, "catavgmax", frozen=frozen) for frozen in (False, True))
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, w = torch.randn(3, 7, 4, 5), torch.rand(7)
    for _ in range(3):
        body.train()(x, w)
    frozen.load_state_dict(frozen_state(body))
    assert not [part for part in frozen.modules() if isinstance(part, nn.BatchNorm1d)]
    near(frozen(x, w), body.eval()(x, w), 1e-4)


def test_a_new_block_is_the_identity() -> None:
    block = GridBody(7, 4, 1, "avg", frozen=False).blocks[0]
    x = torch.randn(3 * 4 * 5, 4)
    assert torch.equal(block(x, 4, 5), x)


# in a delta


def test_logits_are_the_probe_and_the_body_by_their_shares(source: Source) -> None:
    delta = worn(source).eval()
    pool, head = delta.grid_pool, delta.head
    assert pool is not None
    assert isinstance(head, Head)
    whole = source(IMAGES)
    maps = torch.cat([F.adaptive_avg_pool2d(whole.taps[name], (2, 3)) for name in source.taps], 1)
    own = delta.body(maps[:, pool.index], pool.weight)
    averages = torch.cat([whole.taps[name].mean((2, 3)) for name in source.taps], 1)
    values = torch.cat([averages, maps.std((2, 3), correction=0), whole.last], 1)
    strongest = head.pool.weight.topk(head.pool.num_pooled).indices
    read = ((values - head.center) / head.spread * head.pool.weight)[:, strongest] / len(strongest) ** 0.5
    expected = 0.7 * (read @ head.fc.columns[:, strongest].T + head.fc.local.bias) + 0.4 * own @ head.fc.local.weight.T
    near(answers(source, delta), expected, 1e-4)


def test_subscribing_fixes_the_channels_and_divides_by_their_spread(source: Source) -> None:
    delta = Delta(source, SPEC)
    pool = delta.grid_pool
    assert pool is not None
    assert pool.num_pooled == num_pooled(source.num_chs, SPEC.pool_divisor)
    index, std = torch.arange(pool.num_pooled) * 2 + 1, torch.rand(pool.num_pooled) + 0.5
    delta.subscribe(index, std)
    assert torch.equal(pool.index, index)
    near(pool.weight, 1 / std)
    assert not pool.weight.requires_grad
    assert torch.equal(delta.request(delta.choose()).grids[32][:3], torch.tensor([0, 1, 2]))  # the head reads all yet
    frozen = delta.freeze(source)
    assert frozen.grid_pool is not None
    assert torch.equal(frozen.grid_pool.index, index)


def test_a_body_in_training_asks_for_its_channels_alone_where_the_head_is_fixed(source: Source) -> None:
    delta = worn(source).train()
    request = delta.request(delta.choose())
    assert delta.grid_pool is not None
    assert list(request.grids) == [SPEC.grid_reduction]
    assert torch.equal(request.grids[SPEC.grid_reduction], delta.grid_pool.index)
    assert (request.taps, request.channels, request.last) == ((), {}, False)


MIXES = {"both": (0.7, 0.4), "the probe alone": (1.0, 0.0), "the body alone": (0.0, 1.0)}


@pytest.mark.parametrize("mix", MIXES)
def test_freezing_keeps_the_logits_and_leaves_out_what_counts_nothing(source: Source, mix: str) -> None:
    delta = worn(source)
    read_share, share = MIXES[mix]
    delta.head.mix(read_share, share)
    frozen = delta.freeze(source).eval()
    near(answers(source, frozen), answers(source, delta), ROUNDING)
    assert (frozen.body is None) == (share == 0) == (frozen.spec.grid_width is None)
    assert type(frozen.head) is (Head if read_share else nn.Linear)
    if not read_share:
        assert (frozen.spec.head_taps, frozen.spec.head_last) == ((), False)
    assert answers(source, frozen).abs().max() > 0.1


def test_a_settled_delta_can_be_trained_further(source: Source) -> None:
    frozen = worn(source).freeze(source).train()
    F.cross_entropy(SnowModel(source, frozen)(IMAGES), torch.tensor([0, 1, 2])).backward()
    without = {name for name, p in frozen.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without <= {"pools.grid.weight"}


@pytest.mark.parametrize("mix", MIXES)
def test_folded_and_as_a_program_it_gives_the_same(source: Source, mix: str) -> None:
    delta = worn(source)
    delta.head.mix(*MIXES[mix])
    frozen = delta.freeze(source).eval()
    expected = answers(source, frozen)
    near(answers(source, fold(frozen)), expected, 1e-4)
    other = worn(source, replace(SPEC, pool_divisor=5), seed=1).freeze(source).eval()
    alone = worn(source, replace(SPEC, grid_reduction=16), seed=2).freeze(source).eval()
    narrow = Delta(source, DeltaSpec(3)).freeze(source).eval()
    deltas = [frozen, other, alone, narrow]
    with torch.no_grad():
        for given, one in zip(Program(source, deltas)(IMAGES), deltas, strict=True):
            near(given, answers(source, one), 1e-4)
    engine = Engine(source)
    work = [DeltaRequest(engine.prepare(one), (0, 2)) for one in deltas]
    for given, one in zip(engine.run(IMAGES, work), deltas, strict=True):
        near(given.logits, answers(source, one)[[0, 2]], 1e-4)


def test_a_folded_grid_delta_is_folded_already(source: Source) -> None:
    folded = fold(worn(source).freeze(source))
    assert fold(folded) is folded


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_mambaout", "test_nfnet"])
def test_other_families_settle_and_fold_alike(name: str) -> None:
    source = load_source(name, weights="random")
    delta = worn(source)
    frozen = delta.freeze(source)
    near(answers(source, frozen), answers(source, delta), ROUNDING)
    near(answers(source, fold(frozen)), answers(source, frozen), 1e-4)


# cost


@pytest.mark.parametrize("budget", [0.5, 0.05, 0.02])
def test_a_budget_is_kept_by_the_widest_delta_that_keeps_it(budget: float) -> None:
    source = load_source("resnet18", weights="random")
    spec = replace(SPEC, grid_width=96)
    most = budget * source_cost(source).multiply_adds
    kept = within_budget(source, spec, budget)
    assert replace(kept, grid_width=96) == spec
    assert delta_cost(source, kept).multiply_adds <= most
    wider = replace(kept, grid_width=kept.grid_width + GRID_WIDTH_STEP)
    assert kept.grid_width == 96 or delta_cost(source, wider).multiply_adds > most


def test_no_budget_makes_a_delta_thinner_than_the_floor(source: Source) -> None:
    assert within_budget(source, replace(SPEC, grid_width=96), 1e-9).grid_width == LEAST_GRID_WIDTH
    assert within_budget(source, replace(SPEC, grid_width=16), 1e-9).grid_width == 16  # nor wider than asked for


def test_the_cost_is_that_of_its_convolutions(source: Source) -> None:
    """On the 5 x 5 cells of an image of 160 pixels."""
    m, width = num_pooled(source.num_chs, SPEC.pool_divisor), 8
    block = width * 24 + 24 * 9 + 24 * width
    body = 25 * (m * width + 2 * block + width * 4 * width)
    num_read = num_pooled(2 * source.num_chs + source.num_features, SPEC.head_divisor)
    assert delta_cost(source, SPEC).multiply_adds == body + 3 * (8 * width + num_read)


# what is refused


def test_a_divisor_beyond_the_number_of_channels_is_refused(source: Source) -> None:
    one = Delta(source, replace(SPEC, pool_divisor=source.num_chs)).grid_pool
    assert one is not None
    assert one.num_pooled == 1
    with pytest.raises(DeltaError, match=f"leaves no channel.*use a divisor of at most {source.num_chs}"):
        Delta(source, replace(SPEC, pool_divisor=source.num_chs + 1))


@pytest.mark.parametrize(
    ("setting", "given", "message"),
    [
        ("width_divisor", 8, "a grid body or a narrow copy, not both"),
        ("grid_width", 0, "grid_width is 0"),
        ("grid_blocks", None, "grid_blocks is None"),
        ("grid_reduction", 0, "grid_reduction is 0"),
        ("grid_reduction", 16.0, "grid_reduction is 16.0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, given: Any, message: str) -> None:
    with pytest.raises(DeltaError, match=message):
        DeltaSpec.from_dict({**SPEC.to_dict(), setting: given})


# task files


def stored(source: Source, path: Path, mix: str = "both") -> Delta:
    delta = worn(source)
    delta.head.mix(*MIXES[mix])
    frozen = delta.freeze(source).eval()
    save_task(make_task(source, frozen, "pets", ("cat", "dog", "fox"), Framing(64)), path)
    return frozen


@pytest.mark.parametrize("mix", MIXES)
def test_a_task_file_gives_the_same_bits(source: Source, tmp_path: Path, mix: str) -> None:
    frozen = stored(source, tmp_path / "pets.safetensors", mix)
    loaded = load_task(tmp_path / "pets.safetensors", source)
    state = loaded.delta.state_dict()
    assert set(state) == set(frozen.state_dict())
    for key, tensor in frozen.state_dict().items():
        assert torch.equal(state[key], tensor)
        assert state[key].dtype == tensor.dtype
    assert torch.equal(answers(source, loaded.delta), answers(source, frozen))
    assert loaded.spec == frozen.spec
    assert loaded.subscription.get("grid") == (frozen.grid_pool and frozen.grid_pool.num_pooled)
    assert encode_task(loaded) == (tmp_path / "pets.safetensors").read_bytes()


def test_matrices_are_stored_in_a_byte_per_number(source: Source, tmp_path: Path) -> None:
    frozen = stored(source, tmp_path / "pets.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "pets.safetensors")
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1} == {torch.int8}
    whole = sum(tensor.nbytes for tensor in frozen.state_dict().values() if tensor.ndim > 1)
    assert sum(tensor.nbytes for tensor in tensors.values() if tensor.ndim > 1) == whole / 4
    assert sum(tensor.nbytes for tensor in tensors.values()) == size_bytes(source, frozen.spec)


def test_a_head_may_be_stored_in_half_a_byte_per_number(source: Source, tmp_path: Path) -> None:
    delta = worn(source, replace(SPEC, head_bits=4))
    frozen = delta.freeze(source).eval()
    path = tmp_path / "pets.safetensors"
    save_task(make_task(source, frozen, "pets", ("cat", "dog", "fox"), Framing(64)), path)
    tensors = safetensors.torch.load_file(path)
    halves = {key for key, tensor in tensors.items() if tensor.dtype == torch.uint8}
    assert halves == {"head.fc.columns"}
    assert tensors["head.fc.columns"].numel() == -(-frozen.head.fc.columns.shape[1] // 2) * 3
    assert sum(tensor.nbytes for tensor in tensors.values()) == size_bytes(source, frozen.spec)
    loaded = load_task(path, source).delta
    assert torch.equal(answers(source, loaded), answers(source, frozen))
    exact = worn(source).freeze(source).eval()
    difference = (loaded.head.fc.columns - exact.head.fc.columns).abs().amax(1)
    assert bool((difference <= exact.head.fc.columns.abs().amax(1) / 7 / 2 * 1.07).all())


def test_a_matrix_that_rounding_would_change_is_stored_whole(source: Source, tmp_path: Path) -> None:
    frozen = worn(source).freeze(source)
    with torch.no_grad():
        frozen.body.stem[0].weight.add_(1e-6)
    save_task(
        make_task(source, frozen.eval(), "pets", ("cat", "dog", "fox"), Framing(64)), tmp_path / "pets.safetensors"
    )
    tensors = safetensors.torch.load_file(tmp_path / "pets.safetensors")
    assert tensors["body.stem.0.weight"].dtype == torch.float32
    assert "body.stem.0.weight.scale" not in tensors
    assert tensors["body.gather.0.weight"].dtype == torch.int8
    assert torch.equal(answers(source, load_task(tmp_path / "pets.safetensors", source).delta), answers(source, frozen))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scale: None, "'body.stem.0.weight' is torch.int8, expected torch.float32"),
        (lambda scale: scale[:-1], r"'body.stem.0.weight.scale' is torch.float32 of shape \(7,\), expected .*\(8,\)"),
        (lambda scale: scale.half(), "'body.stem.0.weight.scale' is torch.float16"),
        (lambda scale: scale * torch.nan, "'body.stem.0.weight' holds 880 NaN or infinite numbers"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    source: Source, tmp_path: Path, change: Callable[[Tensor], Tensor | None], message: str
) -> None:
    path = tmp_path / "pets.safetensors"
    stored(source, path)
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    scale = change(tensors.pop("body.stem.0.weight.scale"))
    if scale is not None:
        tensors["body.stem.0.weight.scale"] = scale
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(TaskFileError, match=message):
        load_task(path, source)


def test_channels_that_do_not_ascend_are_refused(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "pets.safetensors"
    stored(source, path)
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors["pools.grid.index"] = tensors["pools.grid.index"].flip(0)
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(TaskFileError, match=r"'pools\.grid\.index' is not in ascending order"):
        load_task(path, source)


# one pass for many


def test_a_hub_serves_grids_of_several_sizes_from_one_pass(source: Source, tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub", source)
    specs = {"fine": replace(SPEC, grid_reduction=16), "coarse": SPEC, "wide": replace(SPEC, pool_divisor=3)}
    tasks = {}
    for seed, (name, spec) in enumerate(specs.items()):
        delta = worn(source, spec, seed).freeze(source).eval()
        tasks[name] = make_task(source, delta, name, ("cat", "dog", "fox"), Framing(64))
        hub.add(tasks[name])
    for name, logits in hub.predict(IMAGES).items():
        near(logits, answers(source, tasks[name].delta), 1e-4)
    joint = Request.together(task.delta.request(task.delta.choose()) for task in tasks.values())
    assert sorted(joint.grids) == [16, 32]
