"""What is told of a network must be what a step with it does: weights, arithmetic, memory."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from nnssl_mae.bench.backbones import (
    PATCHES,
    RECIPES,
    BackboneOptions,
    backbone_row,
    bench_backbones,
    fitting_setting,
)
from nnssl_mae.bench.ceilings import count_work
from nnssl_mae.bench.own_step import OwnStep
from nnssl_mae.bench.step_demand import META, Counts, StepDemand, count, parameters_of, step_demand
from nnssl_mae.bench.step_setting import setting_of, sized
from nnssl_mae.cli import app
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.recipes.reading import load_recipe, override

TINY_UNET = {
    "network.base_features": 2,
    "network.max_features": 8,
    "network.blocks_per_stage": (1,),
    "network.max_stages": 3,
    "masking.block_size": 8,
}
TINY_PRIMUS = {
    "network.base_features": 36,
    "network.max_features": 36,
    "network.blocks_per_stage": (2,),
    "network.transformer.drop_path": 0.0,
}
UNET_FILE = """
base: mae
name: tiny
network: {base_features: 2, max_features: 8, blocks_per_stage: [1], max_stages: 3}
masking: {block_size: 8}
"""
NNFORMER_FILE = """
base: nnformer
name: tiny_nnformer
network: {base_features: 12, max_features: 24, blocks_per_stage: [2], transformer: {strides: [[2, 2, 2]]}}
"""


def demand(recipe: str, patch: int, batch: int = 1, **changes: Any) -> StepDemand:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return step_demand(fitting_setting(override(load_recipe(recipe), changes), patch, batch))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two recipes of small networks, a U-Net and a transformer."""
    for name, content in (("tiny", UNET_FILE), ("tiny_nnformer", NNFORMER_FILE)):
        Path(tmp_path, f"{name}.yaml").write_text(content, encoding="utf-8")
    return [str(tmp_path / "tiny.yaml"), str(tmp_path / "tiny_nnformer.yaml")]


def test_the_default_network_has_the_published_size_and_the_known_cost() -> None:
    """ResEnc-L on 160^3: 102.35 M weights, 90.30 M of them in the encoder; what a step costs was computed before."""
    found = demand("mae", 160)
    assert found.parameters.encoder / 1e6 == pytest.approx(90.30, abs=0.01)
    assert found.parameters.whole / 1e6 == pytest.approx(102.35, abs=0.01)
    assert found.parameters.encoder + found.parameters.decoder == found.parameters.whole
    assert found.counts.forward_flops / 1e9 == pytest.approx(2802, rel=0.002)
    assert found.counts.step_flops / 1e9 == pytest.approx(8399, rel=0.002)
    assert found.counts.kept_bytes / 2**30 == pytest.approx(3.98, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "millions"), [("nnformer", 37.5), ("nnformer_acdc", 37.2), ("nnformer_synapse", 149.5)]
)
def test_nnformer_has_its_published_sizes(recipe: str, millions: float) -> None:
    """37.7, 37.2 and 150.1 M with the classes of the three datasets instead of one reconstructed channel."""
    setting = fitting_setting(load_recipe(recipe), 96, 1)
    found = parameters_of(network_shape(setting.architecture, 1, 1))
    assert found.whole / 1e6 == pytest.approx(millions, abs=0.05)


def test_one_convolution_is_counted_as_by_hand() -> None:
    edge, inputs, outputs = 6, 2, 5
    with META:
        convolution = nn.Conv3d(inputs, outputs, 3, padding=1)
        volumes = torch.empty(1, inputs, edge, edge, edge)
    found = count(lambda: convolution(volumes).mean(), convolution.parameters())
    forward = 2 * 27 * inputs * outputs * edge**3
    # The gradient of the weights costs as much again; nobody asks for that of the volumes. Kept: the input in 16 bit.
    assert found == Counts(forward, 2 * forward, kept_bytes=2 * inputs * edge**3)


def test_a_linear_layer_after_a_norm_keeps_what_autocast_keeps() -> None:
    """A LayerNorm works in 32 bit and keeps its input and two numbers a token, the layer after it works in 16 bit."""
    tokens, width = 10, 8
    with META:
        layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        features = torch.empty(tokens, width, requires_grad=True)
    found = count(lambda: layers(features).mean(), layers.parameters())
    assert found.forward_flops == 2 * tokens * width**2
    assert found.step_flops == 3 * found.forward_flops
    assert found.kept_bytes == 4 * (tokens * width + 2 * tokens) + 2 * tokens * width


@pytest.mark.parametrize("bias", [None, torch.empty(1, 1, 512, 512, device=META)])
def test_attention_keeps_no_matrix_of_all_pairs(bias: torch.Tensor | None) -> None:
    tokens, width, heads = 512, 8, 2
    queries = torch.empty(1, heads, tokens, width, device=META, requires_grad=True)
    found = count(lambda: F.scaled_dot_product_attention(queries, queries, queries, attn_mask=bias).mean(), [])
    assert found.forward_flops == 2 * 2 * heads * tokens**2 * width
    given = 0 if bias is None else 2 * tokens**2
    assert found.kept_bytes < given + heads * tokens**2


@pytest.mark.parametrize("recipe", ["mae", "s3d", "amaes"])
def test_the_arithmetic_is_that_of_a_real_step(recipe: str) -> None:
    of = sized(override(load_recipe(recipe), {"network.max_stages": 3}), 16, features=2, small=True)
    real = OwnStep(setting_of(of, 2, "fp32", torch.device("cpu")))
    expected = count_work(real, real.parameters())
    found = step_demand(setting_of(of, 2, "fp16", META))
    assert found.counts.step_flops == expected.flops
    assert 0.4 < found.counts.kept_bytes / expected.kept_bytes < 0.8  # 16 bit; what the loss keeps is 32
    assert found.parameters.whole == sum(parameter.numel() for parameter in real.network.parameters())


def test_dropped_tokens_cost_less() -> None:
    deep = {**TINY_PRIMUS, "network.blocks_per_stage": (6,)}
    few, many = (demand("primus_s", 64, masking__ratio=ratio, **deep) for ratio in (0.75, 0.25))
    assert few.parameters == many.parameters
    assert few.counts.forward_flops < 0.6 * many.counts.forward_flops
    assert few.counts.kept_bytes < 0.8 * many.counts.kept_bytes


def test_what_only_pretraining_needs_is_in_neither_encoder_nor_decoder() -> None:
    found = demand("primus_s", 32, **TINY_PRIMUS).parameters
    without = demand("primus_s", 32, **TINY_PRIMUS, network__transformer__hidden_tokens=None).parameters
    assert (found.encoder, found.decoder) == (without.encoder, without.decoder)
    assert without.whole == without.encoder + without.decoder < found.whole


def test_state_is_of_the_optimiser_of_the_recipe_and_of_weights_that_learn() -> None:
    """SGD remembers one number a weight, AdamW two and how many steps it took; heads that nobody uses learn nothing."""
    sgd = demand("mae", 32, **TINY_UNET)
    adamw = demand("mae", 32, **TINY_UNET, optimiser__name="adamw")
    learning = sgd.parameters.whole - (4 + 1)  # the head of the lower of two resolutions, with 4 features
    assert sgd.state_bytes == 4 * (sgd.parameters.whole + 2 * learning)
    steps = adamw.state_bytes - 4 * (sgd.parameters.whole + 3 * learning)
    assert 0 < steps < 1000


def test_a_larger_batch_costs_in_proportion_and_no_more_state() -> None:
    one, three = (demand("mae", 32, batch, **TINY_UNET) for batch in (1, 3))
    assert three.counts.step_flops == 3 * one.counts.step_flops
    assert three.counts.kept_bytes == pytest.approx(3 * one.counts.kept_bytes, rel=0.02)
    assert three.state_bytes == one.state_bytes


def test_a_patch_that_does_not_fit_is_replaced_by_the_nearest() -> None:
    assert fitting_setting(load_recipe("nnformer"), 100, 1).patch == (96, 96, 96)
    assert fitting_setting(load_recipe("primus_s"), 100, 1).patch == (96, 96, 96)  # of 96 and 104 the smaller one
    assert fitting_setting(load_recipe("mae"), 128, 1).patch == (128, 128, 128)
    row = backbone_row(override(load_recipe("mae"), TINY_UNET), 27, 1)
    assert (row.asked, row.edge) == (27, 24)


def test_the_table_has_a_row_for_each_and_marks_what_was_replaced(files: list[str]) -> None:
    text, report = run(BackboneOptions(files, patches=(32, 70)))
    rows = {tuple(words[:2]): words[2:] for line in text.splitlines() if len(words := line.split()) == 9}
    assert [key for key in rows if key[0].startswith("tiny")] == [
        ("tiny", "32"),
        ("tiny", "72*"),
        ("tiny_nnformer", "32"),
        ("tiny_nnformer", "64*"),
    ]
    assert "* tiny: a patch of 70^3 does not fit; the nearest that does is 72^3." in text
    assert "* tiny_nnformer: a patch of 70^3 does not fit; the nearest that does is 64^3." in text
    assert max(map(len, text.splitlines()[:10])) <= 80
    for found in report["networks"]:
        mark = "" if found["patch"] == found["asked_patch"] else "*"
        cells = rows[found["recipe"], f"{found['patch'][0]}{mark}"]
        numbers = [*found["parameters"].values()]
        assert cells[:3] == [f"{number / 1e6:.2f}" for number in numbers]
        assert math.isclose(float(cells[-1]), found["state_bytes"] / 2**30, abs_tol=0.005)


def test_json_holds_the_numbers_that_were_printed(files: list[str], tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    arguments = ["bench", "backbones", "--recipe", files[0], "--patch", "32", "--batch", "2", "--json", str(file)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = [line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["tiny"]]
    report = json.loads(file.read_text(encoding="utf-8"))
    (network,) = report["networks"]
    assert report["batch"] == 2
    assert network["network"] == "ResidualEncoderUNet"
    expected = demand("mae", 32, 2, **TINY_UNET)
    assert network["step_flops"] == expected.counts.step_flops
    assert network["kept_bytes"] == expected.counts.kept_bytes
    assert float(row[5]) == round(network["forward_flops"] / 2 / 1e9)
    assert float(row[7]) == pytest.approx(network["kept_bytes"] / 2 / 2**30, abs=0.005)


def test_what_cannot_be_counted_is_refused_with_a_sentence(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recomputes activations, which cannot be counted"):
        demand("mae", 32, **TINY_UNET, network__checkpoint_activations=True)
    options = BackboneOptions(files[:1], patches=(32,))
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        run(replace(options, json=tmp_path))
    with pytest.raises(UserError, match="make the folder first"):
        run(replace(options, json=tmp_path / "none" / "all.json"))
    other = Path(tmp_path, "other.yaml")
    other.write_text(UNET_FILE, encoding="utf-8")
    with pytest.raises(UserError, match="Two recipes are named 'tiny'"):
        run(replace(options, recipes=(*options.recipes, str(other))))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_network_of_the_default_table_fits_its_patches(recipe: str) -> None:
    for patch in PATCHES:
        assert fitting_setting(load_recipe(recipe), patch, 1).patch == (patch,) * 3


def run(options: BackboneOptions) -> tuple[str, dict[str, Any]]:
    text = io.StringIO()
    report = bench_backbones(Console(file=text, width=80), options)
    return text.getvalue(), report
