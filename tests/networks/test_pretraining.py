import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl_mae.checkpoints.describe import Checkpoint, Origin
from nnssl_mae.checkpoints.transfer import load_into, transfer
from nnssl_mae.errors import UserError
from nnssl_mae.networks.pretraining import pretraining_network
from nnssl_mae.networks.sparse import visible_at
from nnssl_mae.recipes.pretraining import NetworkRecipe
from tests.networks.architectures import architecture

FORMS = {
    "plain MAE": {},
    "sparse": {"sparse": True},
    "tokens": {"sparse": True, "mask_tokens": True},
    "S3D": {"sparse": True, "mask_tokens": True, "densify": True},
    "no skips": {"skips": False},
    "AMAES": {"skips": False, "decoder": "light"},
    "S3D without skips": {"skips": False, "sparse": True, "mask_tokens": True, "densify": True},
    "packed S3D": {"sparse": "packed", "mask_tokens": True, "densify": True},
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(2, 1, 4, 4, 4, generator=generator) < 0.6
    hidden[:, :, 0, 0, 0] = False
    return torch.randn(2, 1, 16, 16, 16, generator=generator), hidden


def stock(backbone: str):
    plan = architecture(backbone)
    return get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 1, 3, deep_supervision=False
    )


@pytest.mark.parametrize("backbone", ["resenc", "plain", "amaes_unet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_weight_learns_and_the_encoder_loads_into_the_stock_network(backbone: str, form: str) -> None:
    network = pretraining_network(architecture(backbone), 1, NetworkRecipe(**FORMS[form]), "zero")
    volumes, hidden = batch()
    output = network(volumes, hidden)
    assert output.shape == volumes.shape
    output.square().mean().backward()
    # Distributed training fails on a weight that takes part in nothing.
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    target = stock(backbone)
    tensors, report = transfer(checkpoint_of(network, backbone), architecture(backbone), 1, "encoder")
    load_into(target, tensors, [fate.name for fate in report.random])
    assert not [fate for fate in (*report.random, *report.adapted) if fate.name.startswith("encoder.")]
    for name, parameter in target.encoder.named_parameters():
        assert torch.equal(parameter, network.encoder.get_parameter(name))


@pytest.mark.parametrize("backbone", ["resenc", "plain", "amaes_unet"])
@pytest.mark.parametrize("form", ["sparse", "S3D", "S3D without skips", "recomputed"])
@pytest.mark.parametrize("counted", [True, False])
def test_a_packed_encoder_changes_neither_reconstruction_nor_gradients(backbone: str, form: str, counted: bool) -> None:
    """Whoever counts the visible blocks, and whether activations are kept or recomputed."""
    torch.manual_seed(0)
    options = FORMS["S3D"] | {"checkpoint_activations": True} if form == "recomputed" else FORMS[form]
    masked = pretraining_network(architecture(backbone), 1, NetworkRecipe(**options), "zero").double()
    recipe = NetworkRecipe(**options | {"sparse": "packed"})
    packed = pretraining_network(architecture(backbone), 1, recipe, "zero").double()
    packed.load_state_dict(masked.state_dict())
    volumes, hidden = batch()
    count = int((~hidden).sum()) if counted else None
    outputs = masked(volumes.double(), hidden), packed(volumes.double(), hidden, count)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)
    for output in outputs:
        output.square().mean().backward()
    for (name, one), other in zip(masked.named_parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-10, msg=name)


def test_the_plain_form_computes_what_the_stock_network_computes() -> None:
    network = pretraining_network(architecture(), 1, NetworkRecipe(), "zero")
    plan = architecture()
    same = get_network_from_plans(
        plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 1, 1, deep_supervision=False
    )
    same.load_state_dict(network.state_dict())  # the names are the stock ones, all of them
    volumes, hidden = batch()
    torch.testing.assert_close(network(volumes, hidden), same(network.hide(volumes, hidden)))


def test_tokens_fill_hidden_positions_and_only_these() -> None:
    network = pretraining_network(architecture(), 1, NetworkRecipe(sparse=True, mask_tokens=True), "zero")
    volumes, hidden = batch()
    features = network.encode(network.hide(volumes, hidden), hidden)
    for level, (before, after) in enumerate(zip(features, network.fill(features, hidden), strict=True)):
        visible = visible_at(hidden, before.shape[2:])
        mask = torch.nn.functional.interpolate(visible.float(), before.shape[2:]).bool().expand_as(before)
        assert torch.equal(after[mask], before[mask])
        token = network.mask_tokens[str(level)].expand_as(after)
        assert torch.equal(after[~mask], token[~mask])


def test_a_learned_hidden_value_stands_in_hidden_voxels_and_learns() -> None:
    network = pretraining_network(architecture(), 1, NetworkRecipe(), "token")
    torch.nn.init.constant_(network.hidden_value, 5.0)
    volumes, hidden = batch()
    shown = network.hide(volumes, hidden)
    mask = torch.nn.functional.interpolate(hidden.float(), volumes.shape[2:]).bool()
    assert (shown[mask] == 5).all()
    assert torch.equal(shown[~mask], volumes[~mask])
    network(volumes, hidden).sum().backward()
    assert network.hidden_value.grad.abs().sum() > 0


def test_a_decoder_without_skips_cannot_be_transferred() -> None:
    network = pretraining_network(architecture(), 1, NetworkRecipe(skips=False, decoder="light"), "zero")
    with pytest.raises(UserError, match="without skip connections"):
        transfer(checkpoint_of(network), architecture(), 1, "encoder+decoder")


def checkpoint_of(network: torch.nn.Module, backbone: str = "resenc") -> Checkpoint:
    origin = Origin(format="nnssl_mae", label="test", sha256="")
    return Checkpoint(network.state_dict(), architecture(backbone), 1, plans={}, data={}, origin=origin)


def test_densification_is_at_every_resolution_but_the_highest() -> None:
    network = pretraining_network(architecture(), 1, NetworkRecipe(sparse=True, densify=True), "zero")
    assert sorted(network.densifiers) == ["1", "2"]


@pytest.mark.parametrize(("width", "encoder", "whole"), [(32, 14.1, 22.6), (64, 56.5, 90.3)])
def test_the_unet_of_amaes_has_the_published_size(width: int, encoder: float, whole: float) -> None:
    plan = architecture("amaes_unet", tuple(width * 2**i for i in range(5)), depth=2)
    with torch.device("meta"):
        network = get_network_from_plans(
            plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 1, 2,
            allow_init=False, deep_supervision=False,
        )  # fmt: skip
    assert sum(p.numel() for p in network.encoder.parameters()) / 1e6 == pytest.approx(encoder, abs=0.05)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(whole, abs=0.1)
    assert len([m for m in network.encoder.modules() if isinstance(m, torch.nn.MaxPool3d)]) == 4
