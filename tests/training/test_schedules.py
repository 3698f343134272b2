from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnssl_mae.errors import UserError
from nnssl_mae.recipes.finetuning import load_any_recipe, load_finetune_recipe
from nnssl_mae.recipes.reading import load_recipe
from nnssl_mae.training.schedule_plot import draw_schedule, timeline
from nnssl_mae.training.schedules import (
    FinetuneSchedule,
    group_factors,
    group_rates,
    keep_stock_layout,
    learning_rate,
    parameter_groups,
    phase_at,
    phases,
    pretraining_learning_rate,
)

STAGES = 3


def residual_encoder_unet() -> nn.Module:
    return ResidualEncoderUNet(
        1, STAGES, [2, 4, 4], nn.Conv3d, 3, [1, 2, 2], [1, 1, 1], 2, [1, 1],
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip


def plain_unet() -> nn.Module:
    return PlainConvUNet(
        1, STAGES, [2, 4, 4], nn.Conv3d, 3, [1, 2, 2], [1, 1, 1], 2, [1, 1],
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
    )  # fmt: skip


# ---------------------------------------------------------------------- phases and rates


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        ("sawtooth", 1000, [("decoder", 0, 25), ("decoder", 25, 25), ("all", 50, 50), ("all", 100, 900)]),
        ("sawtooth", 150, [("decoder", 0, 7), ("decoder", 7, 8), ("all", 15, 15), ("all", 30, 120)]),
        ("sawtooth", 20, [("decoder", 0, 1), ("decoder", 1, 1), ("all", 2, 2), ("all", 4, 16)]),
        ("sawtooth", 4, [("decoder", 0, 1), ("decoder", 1, 1), ("all", 2, 1), ("all", 3, 1)]),
        ("warmup", 1000, [("all", 0, 50), ("all", 50, 950)]),
        ("warmup", 150, [("all", 0, 15), ("all", 15, 135)]),
        ("warmup", 2, [("all", 0, 1), ("all", 1, 1)]),
        ("valley", 1000, [("decoder", 0, 50), ("all", 50, 50), ("all", 100, 900)]),
        ("valley", 3, [("decoder", 0, 1), ("all", 1, 1), ("all", 2, 1)]),
        ("default", 1000, [("all", 0, 1000)]),
        ("frozen", 150, [("decoder", 0, 150)]),
    ],
)
def test_phases_have_the_published_lengths(name: str, epochs: int, expected: list[tuple[str, int, int]]) -> None:
    order = phases(load_finetune_recipe(name, epochs))
    assert [(phase.trains, phase.first_epoch, phase.epochs) for phase in order] == expected
    for epoch in range(epochs):
        assert phase_at(order, epoch).first_epoch <= epoch <= phase_at(order, epoch).last_epoch
    with pytest.raises(ValueError, match=f"outside of {epochs} epochs"):
        phase_at(order, epochs)


@pytest.mark.parametrize(("epochs", "rise", "fall", "warmup"), [(1000, 25, 25, 50), (150, 7, 8, 15), (20, 1, 1, 2)])
def test_sawtooth_has_these_rates_at_its_boundaries(epochs: int, rise: int, fall: int, warmup: int) -> None:
    recipe = load_finetune_recipe("sawtooth", epochs)
    rates = [learning_rate(recipe, epoch) for epoch in range(epochs)]
    start, decay = rise + fall, rise + fall + warmup
    assert rates[0] == pytest.approx(1e-3 / rise)
    assert rates[rise - 1] == rates[rise] == 1e-3  # top of the first tooth
    assert rates[start - 1] == pytest.approx(1e-3 * (1 / fall) ** 0.9)
    assert rates[start] == pytest.approx(1e-3 / warmup)
    assert rates[decay - 1] == rates[decay] == 1e-3  # top of the second
    assert rates[-1] == pytest.approx(1e-3 * (1 / (epochs - decay)) ** 0.9)
    assert all(a < b for a, b in pairwise(rates[:rise]))
    assert all(a > b for a, b in pairwise(rates[rise:start]))
    assert all(a < b for a, b in pairwise(rates[start:decay]))
    assert all(a > b for a, b in pairwise(rates[decay:]))


def test_warmup_rises_in_equal_steps_to_the_peak_then_falls_to_zero() -> None:
    recipe = load_finetune_recipe("warmup")
    rates = [learning_rate(recipe, epoch) for epoch in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 50)
    assert rates[49] == rates[50] == 1e-3
    assert max(rates) == 1e-3
    steps = [b - a for a, b in pairwise(rates[:50])]
    assert steps == pytest.approx([1e-3 / 50] * 49)
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert 0 < rates[-1] < 1e-5
    assert rates[525] == pytest.approx(1e-3 * 0.5**0.9)


def test_valley_falls_rises_and_falls_again() -> None:
    recipe = load_finetune_recipe("valley", 150)
    rates = [learning_rate(recipe, epoch) for epoch in range(150)]
    assert rates[0] == rates[29] == rates[30] == 1e-3
    assert rates[14] == pytest.approx(1e-3 * (1 / 15) ** 0.9)
    assert rates[15] == pytest.approx(1e-3 / 15)


@pytest.mark.parametrize("name", ["scratch", "default", "frozen"])
def test_without_a_warmup_the_rate_is_nnunets_own(name: str) -> None:
    recipe = load_finetune_recipe(name, 100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    stock = PolyLRScheduler(optimizer, recipe.peak_learning_rate, 100)
    for epoch in (0, 1, 50, 99):
        stock.step(epoch)
        assert learning_rate(recipe, epoch) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_the_cosine_passes_half_the_peak_in_the_middle() -> None:
    recipe = load_finetune_recipe("amaes_finetuning")
    assert learning_rate(recipe, 0) == 1e-4
    assert learning_rate(recipe, 250) == pytest.approx(0.5e-4)
    assert learning_rate(recipe, 125) == pytest.approx(1e-4 * (1 + 0.5**0.5) / 2)
    assert 0 < learning_rate(recipe, 499) < 1e-8


def test_pretraining_rates_follow_the_same_rules() -> None:
    recipe = load_recipe("mae")  # no warm-up
    assert pretraining_learning_rate(recipe, 0) == 1e-2
    assert pretraining_learning_rate(recipe, 500) == pytest.approx(1e-2 * 0.5**0.9)
    short = ["schedule.epochs=100", "schedule.warmup_epochs=5", "schedule.decay=cosine", "optimiser.learning_rate=0.1"]
    recipe = load_recipe("mae", short)
    assert pretraining_learning_rate(recipe, 0) == pytest.approx(0.02)
    assert pretraining_learning_rate(recipe, 4) == pretraining_learning_rate(recipe, 5) == 0.1
    assert 0 < pretraining_learning_rate(recipe, 99) < 1e-4


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_rate_follows_the_batch_as_the_recipe_says(rule: str, factor: int) -> None:
    """The batch is that of all processes together, so their number does not matter."""
    usual = load_recipe("mae")
    recipe = load_recipe("mae", ["network.batch_size=32", "optimiser.rule_batch=8", f"optimiser.batch_rule={rule}"])
    for epoch in (0, 500, 999):
        expected = factor * pretraining_learning_rate(usual, epoch)
        assert pretraining_learning_rate(recipe, epoch) == pytest.approx(expected)


# ---------------------------------------------------------------------- parameter groups


@pytest.mark.parametrize("make", [residual_encoder_unet, plain_unet])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_every_tensor_of_nnunets_networks_is_in_exactly_one_group(make, layer_decay: float) -> None:
    network = make()
    groups = parameter_groups(network, load_finetune_recipe("warmup", changes=[f"layer_decay={layer_decay}"]))
    grouped = [id(tensor) for group in groups for tensor in group["params"]]
    everything = {id(tensor) for _, tensor in network.named_parameters(remove_duplicate=False)}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == everything


def test_decoder_means_what_is_not_in_the_encoder() -> None:
    """nnU-Net's decoder holds the encoder: ``network.decoder.parameters()`` is the whole network."""
    network = residual_encoder_unet()
    groups = {group["name"]: group for group in parameter_groups(network, load_finetune_recipe("sawtooth"))}
    assert list(groups) == ["decoder", "encoder"]
    encoder = {id(tensor) for tensor in network.encoder.parameters()}
    assert {id(tensor) for tensor in groups["encoder"]["params"]} == encoder
    assert not {id(tensor) for tensor in groups["decoder"]["params"]} & encoder
    assert len(list(network.decoder.parameters())) == len(list(network.parameters()))


@pytest.mark.parametrize(("make", "stem"), [(residual_encoder_unet, True), (plain_unet, False)])
def test_layer_decay_slows_each_stage_more_the_nearer_it_is_to_the_input(make, stem: bool) -> None:
    network = make()
    recipe = load_finetune_recipe("warmup", changes=["layer_decay=0.5"])
    groups = parameter_groups(network, recipe)
    expected = {"decoder": 1.0, "encoder.stages.2": 0.5, "encoder.stages.1": 0.25, "encoder.stages.0": 0.125}
    expected |= {"encoder.stem": 0.0625} if stem else {}
    assert {group["name"]: group["factor"] for group in groups} == expected
    names = {id(tensor): name for name, tensor in network.named_parameters()}
    for group in groups[1:]:
        assert group["params"]
        assert all(names[id(tensor)].startswith(f"{group['name']}.") for tensor in group["params"])

    schedule = FinetuneSchedule(torch.optim.SGD(groups, momentum=0.9, nesterov=True), recipe)
    schedule.step(49)
    assert schedule.get_last_lr() == [1e-3 * factor for factor in expected.values()]


def test_layer_decay_of_an_encoder_without_stages_is_refused() -> None:
    network = nn.ModuleDict({"encoder": nn.ModuleDict({"blocks": nn.Linear(1, 1)})})
    with pytest.raises(UserError, match=r"encoder\.blocks\.weight: set it to 1"):
        parameter_groups(network, load_finetune_recipe("warmup", changes=["layer_decay=0.5"]))


def test_an_encoder_that_stands_still_has_rate_zero() -> None:
    recipe = load_finetune_recipe("sawtooth", 20)
    factors = group_factors(1.0, STAGES)
    assert group_rates(recipe, 0, factors) == {"decoder": 1e-3, "encoder": 0.0}
    assert group_rates(recipe, 2, factors) == {"decoder": 0.5e-3, "encoder": 0.5e-3}
    frozen = load_finetune_recipe("frozen", 20)
    assert all(group_rates(frozen, epoch, factors)["encoder"] == 0 for epoch in range(20))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimiser_state_reads_and_writes_like_that_of_stock_nnunet(kind) -> None:
    """Stock: one group, tensors in the order of the network. Also what earlier versions wrote."""
    torch.manual_seed(0)
    options = {"momentum": 0.9, "nesterov": True} if kind is torch.optim.SGD else {}
    recipe = load_finetune_recipe("warmup", changes=["layer_decay=0.5"])

    def optimiser(network: nn.Module, ours: bool) -> torch.optim.Optimizer:
        made = kind(parameter_groups(network, recipe) if ours else network.parameters(), lr=1e-2, **options)
        if ours:
            keep_stock_layout(made, network)
        return made

    network = residual_encoder_unet()
    ours = optimiser(network, True)
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    ours.step()
    written = ours.state_dict()
    assert len(written["param_groups"]) == 1

    stock = optimiser(network, False)
    stock.load_state_dict(written)
    again = optimiser(network, True)
    again.load_state_dict(stock.state_dict())
    assert [group["name"] for group in again.param_groups] == [group["name"] for group in ours.param_groups]
    assert [group["factor"] for group in again.param_groups] == [group["factor"] for group in ours.param_groups]
    learnt = [name for name, tensor in network.named_parameters() if tensor.grad is not None]
    assert len(ours.state) == len(stock.state) == len(again.state) == len(learnt)
    for name in learnt:
        tensor = network.get_parameter(name)
        for key, value in ours.state[tensor].items():
            assert torch.equal(value, stock.state[tensor][key]), (name, key)
            assert torch.equal(value, again.state[tensor][key]), (name, key)


# ---------------------------------------------------------------------- picture


@pytest.mark.parametrize("name", ["sawtooth", "mae"])
def test_the_picture_is_a_png(tmp_path: Path, name: str) -> None:
    draw_schedule(timeline(load_any_recipe(name, epochs=20)), tmp_path / "schedule.png")
    content = (tmp_path / "schedule.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.png"]


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    plan = timeline(load_any_recipe("warmup", epochs=20))
    with pytest.raises(UserError, match=r"ends in \.png"):
        draw_schedule(plan, tmp_path / "schedule.jpg")
    with pytest.raises(UserError, match="cannot be written"):
        draw_schedule(plan, tmp_path / "missing" / "schedule.png")


def test_the_timeline_of_a_fine_tuning_has_a_rate_for_each_layer() -> None:
    plan = timeline(load_finetune_recipe("sawtooth", 150, changes=["layer_decay=0.5"]), stages=2)
    assert plan.rates(0) == {
        "decoder": pytest.approx(1e-3 / 7), "encoder.stages.1": 0, "encoder.stages.0": 0, "encoder.stem": 0,
    }  # fmt: skip
    assert plan.rates(30) == {
        "decoder": 1e-3, "encoder.stages.1": 5e-4, "encoder.stages.0": 2.5e-4, "encoder.stem": 1.25e-4,
    }  # fmt: skip
