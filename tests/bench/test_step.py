"""Baselines must compute what ours computes, or a ratio of times means nothing; and what is measured must be told."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from nnssl_mae.bench import step as bench
from nnssl_mae.bench.ceilings import Ceilings, Work, count_work, matmul_ceiling
from nnssl_mae.bench.measuring import Timing, alternately, middle_half
from nnssl_mae.bench.peer_network import ReleasedStyleS3D, gathered_loss, repeated
from nnssl_mae.bench.peer_step import dense_loss, draw_visible
from nnssl_mae.bench.step import StepOptions, bench_step, time_variants
from nnssl_mae.bench.step_report import print_group
from nnssl_mae.bench.step_result import Group, StepResult, ratios_of
from nnssl_mae.bench.step_setting import StepSetting, setting_of, sized
from nnssl_mae.bench.step_variants import Variant, variants_of
from nnssl_mae.errors import UserError
from nnssl_mae.masking import hide
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.networks.pretraining import PretrainingNetwork, pretraining_network
from nnssl_mae.objectives import reconstruction_loss
from nnssl_mae.recipes.pretraining import LossRecipe
from nnssl_mae.recipes.reading import load_recipe

CPU = torch.device("cpu")
TINY = StepOptions(patch=16, features=2, batches=(1,), device="cpu", repeats=3)


def setting(recipe: str = "s3d", patch: int = 16, batch: int = 2) -> StepSetting:
    return setting_of(sized(load_recipe(recipe), patch, features=4, small=True), batch, "fp32", CPU)


def ours(of: StepSetting) -> PretrainingNetwork:
    """With weights that no initialisation gives: biases, norms and tokens must matter."""
    torch.manual_seed(1)
    network = pretraining_network(of.architecture, 1, of.recipe.network, of.recipe.masking.hidden_value).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def stock_like(network: PretrainingNetwork, of: StepSetting) -> nn.Module:
    stock = planned_network(of.architecture, 1, 1).double()
    stock.load_state_dict({key: value for key, value in network.state_dict().items() if key in stock.state_dict()})
    return stock


def released_like(network: PretrainingNetwork, of: StepSetting, densify_norm: bool = False) -> ReleasedStyleS3D:
    """With the weights of ours."""
    released = ReleasedStyleS3D(stock_like(network, of), densify_norm).double()
    with torch.no_grad():
        for level, token in enumerate(released.tokens):
            token.copy_(network.mask_tokens[str(level)])
        for level in range(1, len(released.tokens)):
            released.densifiers[level].load_state_dict(network.densifiers[str(level)].state_dict())
    return released


def batch_of(of: StepSetting) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Volumes, hidden blocks, and the same mask as the baselines have it: 1 = visible."""
    torch.manual_seed(2)
    visible = draw_visible(of.batch, of.grid, of.ratio)
    return torch.randn(of.batch, 1, *of.patch, dtype=torch.float64), visible == 0, visible


def gradients(network: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    """In the order of encoder, decoder, tokens, densification; heads that nobody uses have none."""
    loss.backward()
    tokens = network.mask_tokens.values() if hasattr(network, "mask_tokens") else network.tokens
    parts = [*network.encoder.parameters(), *network.decoder.parameters(), *tokens, *network.densifiers.parameters()]
    return [parameter.grad for parameter in parts if parameter.grad is not None]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """Up to a share of the typical gradient: that of a bias before a norm is zero but for rounding."""
    assert len(found) == len(expected) > 20
    typical = float(torch.stack([gradient.abs().max() for gradient in expected]).median())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * typical)


def test_the_released_style_network_computes_our_reconstruction_and_its_gradients() -> None:
    of = setting()
    network = ours(of)
    released = released_like(network, of)
    volumes, hidden, visible = batch_of(of)
    expected, found = network(volumes, hidden), released(hide(volumes, hidden), visible)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    assert_same(gradients(released, (found * weights).sum()), gradients(network, (expected * weights).sum()), 1e-8)


def test_its_loss_and_the_gradients_of_that_are_ours() -> None:
    of = setting()
    network = ours(of)
    released = released_like(network, of)
    volumes, hidden, visible = batch_of(of)
    expected = reconstruction_loss(network(volumes, hidden), volumes, hidden, LossRecipe())  # 32 bit
    found = gathered_loss(released(hide(volumes, hidden), visible), volumes, visible)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients(released, found), gradients(network, expected), 1e-5)


def test_with_the_norms_that_it_has_before_densification_its_encoder_is_still_ours() -> None:
    of = setting()
    network = ours(of)
    released = released_like(network, of, densify_norm=True)
    volumes, hidden, visible = batch_of(of)
    shown = hide(volumes, hidden)
    for found, expected in zip(released.encode(shown, visible), network.encode(shown, hidden), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (released(shown, visible) - network(volumes, hidden)).abs().max() > 1e-3


def test_it_differs_where_it_says_so() -> None:
    """Hidden voxels leak unless the caller hides them, and features coarser than the mask are visible everywhere."""
    of = setting(patch=32)
    released = released_like(ours(of), of)
    volumes, hidden, visible = batch_of(of)
    leaking, tight = (released.encode(x, visible)[0] for x in (volumes, hide(volumes, hidden)))
    assert (leaking - tight).abs().max() > 1e-3
    coarse = F.interpolate(hidden.double(), scale_factor=2)
    lowest = released.encode(hide(volumes, hidden), 1 - coarse)[-1]
    assert lowest.shape[2] < coarse.shape[2]
    assert (lowest != 0).all()


def test_the_dense_baseline_computes_our_loss_and_gradients() -> None:
    of = setting("mae")
    network = ours(of)
    stock = stock_like(network, of)
    volumes, hidden, visible = batch_of(of)
    full = repeated(visible, of.patch)
    expected = reconstruction_loss(network(volumes, hidden), volumes, hidden, LossRecipe())
    found = dense_loss(stock(volumes * full), volumes, full)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    one, other = ([p.grad for p in n.parameters() if p.grad is not None] for n in (stock, network))
    assert_same(one, other, 1e-5)


def test_work_is_counted_inside_own_autograd_functions_too() -> None:
    """Masked and released-style steps convolve the same; a packed one, about as much less as is hidden."""
    of = setting(batch=4)
    works = {}
    for variant in variants_of([of], compiled=False):
        step = variant.build()
        works[variant.kind] = count_work(step, step.parameters())
    assert works["masked"].flops == works["released"].flops > works["stock"].flops  # no densification there
    decoder_and_rest = 0.75  # of the masked network's work is in its decoder and densification, or less
    assert 0.25 * works["masked"].flops < works["packed"].flops < decoder_and_rest * works["masked"].flops
    assert works["packed"].kept_bytes < works["masked"].kept_bytes


def test_the_work_of_one_convolution_is_what_one_counts_by_hand() -> None:
    convolution, volumes = nn.Conv3d(2, 4, 3, bias=False), torch.randn(1, 2, 6, 6, 6)
    work = count_work(lambda: convolution(volumes).sum().backward(), convolution.parameters())
    assert work.flops == 2 * (2 * 4**3 * 4 * 2 * 3**3)  # forward, and the gradient of the weights
    assert work.kept_bytes == 4 * volumes.numel()  # the input; weights are no activations
    assert work.flop_floor(Ceilings(1e9, 1e9)) == work.flops / 1e9
    assert work.byte_floor(Ceilings(1e9, 1e9)) == 2 * work.kept_bytes / 1e9
    before = torch.get_float32_matmul_precision()
    assert matmul_ceiling(CPU, torch.float32, edge=64) > 0
    assert torch.get_float32_matmul_precision() == before


@pytest.fixture(autouse=True)
def _short_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure_ceilings", lambda *_: Ceilings(1e10, 1e10))


def run(options: StepOptions) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=160, record=True)
    return bench_step(console, options), console.export_text()


def test_all_is_printed_and_written(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    report, text = run(replace(TINY, json=file))
    assert json.loads(file.read_text()) == report
    assert report["versions"]["torch"] == metadata.version("torch")
    (group,) = report["groups"]
    assert [variant["kind"] for variant in group["variants"]] == ["stock", "released", "dense", "masked", "packed"]
    for variant in group["variants"]:
        assert len(variant["wall"]) == len(variant["cpu"]) == 3
        assert variant["smallest"] <= variant["quartiles"][0] <= variant["median"] <= variant["largest"]
        assert variant["voxels_per_second"] == pytest.approx(16**3 / variant["median"])
        assert variant["share_of_matmul_ceiling"] == pytest.approx(variant["flops"] / 1e10 / variant["median"])
        assert variant["peak_bytes"] is variant["problem"] is None
        assert f"Warming up: {variant['name']}" in text
    assert [(ratio["of"], ratio["to"]) for ratio in group["ratios"]] == [
        ("ours (mae)", "stock-style dense (mae)"),
        ("ours, masked (s3d)", "released-style S3D (s3d)"),
        ("ours, packed (s3d)", "released-style S3D (s3d)"),
    ]
    assert "3 stages, features 2-4-8" in " ".join(text.split())  # a title is as wide as its table
    assert "times as fast as stock-style dense (mae)" in text


def test_several_batches_and_only_the_baselines_that_are_needed() -> None:
    report, text = run(replace(TINY, recipes=("mae", "mae_paper"), batches=(1, 2), repeats=1))
    assert [group["batch"] for group in report["groups"]] == [1, 2]
    for group in report["groups"]:  # both recipes have the same network
        assert [variant["kind"] for variant in group["variants"]] == ["stock", "dense", "dense"]
    assert "released" not in text


def test_compiled_networks_are_compared_with_compiled_ones() -> None:
    variants = variants_of([setting("mae"), setting("s3d")], compiled=True)
    baselines = {variant.name: variant.baseline for variant in variants if variant.compiled}
    assert baselines == {
        "stock-style dense (mae), compiled": None,
        "ours (mae), compiled": "stock-style dense (mae), compiled",
        "ours, masked (s3d), compiled": "released-style S3D (s3d)",
        "ours, packed (s3d), compiled": "released-style S3D (s3d)",
    }


def test_another_network_has_its_own_baseline_and_a_caveat() -> None:
    variants = variants_of([setting("mae", 32), setting("amaes", 32)], compiled=False)
    assert [variant.kind for variant in variants] == ["stock", "stock", "dense", "dense"]
    assert variants[-1].baseline == variants[1].name == "stock-style dense (amaes)"
    assert variants[-1].difference == "ours has a decoder without skip connections"
    assert not variants[-2].difference
    results = [StepResult(variant, Timing((1.0,), (1.0,)), Work(1, 1), None) for variant in variants]
    console = Console(file=io.StringIO(), width=160, record=True)
    print_group(console, Group(Ceilings(1e9, 1e9), results))
    text = console.export_text()
    assert "2 networks, see below" in " ".join(text.split())
    assert "amaes: AmaesUNet, patch 32x32x32, 4 stages" in text
    assert "is 1.00 times as fast as stock-style dense (amaes) (1.00 to 1.00 in the middle half" in text
    assert "not the same work: ours has a decoder without skip connections." in text


def test_each_compiled_variant_is_compiled_once_and_none_while_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    variants = variants_of([setting("mae")], compiled=True)
    compiled = [variant for variant in variants if variant.compiled]
    counts: list[int] = []
    console = Console(file=io.StringIO())
    timed = bench._timed

    def counted(*arguments: Any) -> Any:
        counts.append(counter.frame_count)
        return timed(*arguments)

    monkeypatch.setattr(bench, "_timed", counted)
    results = time_variants(console, compiled, CPU, 2)
    assert all(result.timing is not None for result in results)
    assert counts == [counter.frame_count] == [len(compiled)]


class Failing:
    """A step that runs out of memory at one of its calls, or does not compile."""

    def __init__(self, fails_at: int) -> None:
        self.left, self.weight = fails_at, nn.Parameter(torch.ones(1))

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise torch.cuda.OutOfMemoryError("no room")

    def compile(self) -> None:
        raise TorchDynamoException("no compiler here\nand more")

    def parameters(self) -> list[torch.Tensor]:
        return [self.weight]


def failing(name: str, fails_at: int = 0, compiled: bool = False) -> Variant:
    return Variant(name, "dense", setting(), lambda: Failing(fails_at), compiled=compiled)


def test_a_variant_that_fails_is_told_of_and_the_others_go_on() -> None:
    console = Console(file=io.StringIO(), width=160, record=True)
    variants = [failing("good"), failing("large", 1), failing("larger later", 6), failing("odd", compiled=True)]
    results = {result.variant.name: result for result in time_variants(console, variants, CPU, 3)}
    text = console.export_text()
    assert {name: result.problem for name, result in results.items()} == {
        "good": None, "large": "out of memory", "larger later": "out of memory", "odd": "not compiled",
    }  # fmt: skip
    assert {name for name, result in results.items() if result.timing is not None} == {"good"}
    assert "odd: torch.compile failed (no compiler here); the others go on" in text
    assert "larger later: out of memory of the GPU; the others go on" in text
    with pytest.raises(UserError, match=r"No variant could be timed .*use a smaller --batch or --patch"):
        time_variants(console, variants[1:], CPU, 3)


def test_ratios_are_of_rounds_and_only_of_what_was_timed() -> None:
    baseline = Variant("slow", "stock", setting(), lambda: Failing(0))
    own = replace(baseline, name="fast", kind="dense", baseline="slow")
    work = Work(1, 1)
    slow = StepResult(baseline, Timing((2.0, 40.0, 6.0), (0.0,) * 3), work, None)
    fast = StepResult(own, Timing((1.0, 20.0, 2.0), (0.0,) * 3), work, None)
    (ratio,) = ratios_of([slow, fast])
    assert (ratio.value, ratio.quartiles) == (2.0, (2.0, 2.5))
    assert ratios_of([replace(slow, timing=None), fast]) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"recipes": ("maee",)}, "There is no recipe 'maee', did you mean 'mae'"),
        ({"patch": 50}, "--patch 50 does not fit the recipe 'mae'; the nearest that fits is --patch 48"),
        ({"patch": 170, "small": False}, "the nearest that fits is --patch 160"),
        ({"formats": ("fp16",)}, "--amp fp16 is not possible on a CPU"),
        ({"formats": ("bf16",)}, "--amp bf16 is not possible on a CPU"),
        ({"formats": ("fp8",)}, "--amp fp8 is not possible; use fp32, fp16 or bf16"),
        ({"device": "tpu"}, "--device tpu is not possible; use cpu or cuda"),
        ({"json": Path("/nowhere/at/all.json")}, "in a folder that does not exist; make the folder first"),
        pytest.param(
            {"json": Path("/proc/all.json")},
            "cannot be written .*choose a folder that can",
            marks=pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which root cannot write"),
        ),
        ({"json": Path("/")}, "is a folder; give the name of a file in it"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_timed(
    change: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "time_variants", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match=sentence):
        run(replace(TINY, **change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="--device cuda: torch finds no GPU here"):
        run(replace(TINY, device="cuda"))


def test_the_published_sizes_stay_as_they_are() -> None:
    recipe = load_recipe("s3d")
    assert sized(recipe, None, None, small=False) == recipe
    whole = setting_of(sized(recipe, 160, None, small=False), 2, "fp16", CPU)
    assert (whole.recipe.masking.block_size, whole.grid) == (recipe.masking.block_size, (5, 5, 5))
    assert whole.architecture["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 320, 320]
    assert whole.ratio == 0.75  # the middle of 0.6 to 0.9


def test_works_take_turns_and_clocks_wait_for_the_device() -> None:
    seen: list[str] = []
    works = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    rounds: list[tuple[int, str]] = []
    timings = alternately(
        works, 2, settle=lambda: seen.append("|"), announce=lambda number, name: rounds.append((number, name))
    )
    assert "".join(seen) == "ab" + "|a||b|" * 2
    assert rounds == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert all(len(timing.wall) == len(timing.cpu) == 2 for timing in timings.values())
    assert middle_half([3.0]) == (3.0, 3.0)
    assert middle_half([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
