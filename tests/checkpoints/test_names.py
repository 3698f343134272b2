"""The several names of a tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnssl_mae.checkpoints.describe import nnunet_architecture
from nnssl_mae.checkpoints.names import has_skips, one_name, under_one_name, with_aliases
from nnssl_mae.networks.planned import planned_network
from tests.checkpoints.files import KWARGS, PLAIN_KWARGS, first_names, network_of, tiny_recipe

DROPOUT = {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.1}}


@pytest.mark.parametrize(
    ("network", "kwargs"),
    [
        ("ResidualEncoderUNet", KWARGS),
        ("PlainConvUNet", PLAIN_KWARGS),
        ("AmaesUNet", PLAIN_KWARGS),
        ("PlainConvUNet", PLAIN_KWARGS | DROPOUT),
        ("PlainConvUNet", PLAIN_KWARGS | {"nonlin_first": True}),
        ("PlainConvUNet", PLAIN_KWARGS | {"norm_op": "torch.nn.BatchNorm3d"}),
    ],
)
def test_one_name_and_all_names_are_those_of_the_network(network: str, kwargs: dict[str, Any]) -> None:
    """Compared with which names share memory in the network itself."""
    architecture = nnunet_architecture(network, kwargs, None, "test")
    built = planned_network(architecture, 2, 3)
    state, first = built.state_dict(), first_names(built)
    assert {one_name(name) for name in state} == set(first)
    assert all(state[name].data_ptr() == first[one_name(name)].data_ptr() for name in state)
    aliased = with_aliases({name: tensor.clone() for name, tensor in first.items()}, architecture)
    assert set(aliased) == set(state)
    assert all(torch.equal(aliased[name], tensor) for name, tensor in state.items())


def test_tensors_of_other_parts_keep_their_name() -> None:
    for name in ("mask_tokens.2", "densifiers.1.weight", "hidden_value", "decoder.transpconvs.0.weight"):
        assert one_name(name) == name


def test_a_decoder_without_skip_connections_does_not_hold_the_encoder() -> None:
    network = network_of(tiny_recipe(network={"skips": False, "decoder": "light"}))
    architecture = nnunet_architecture("ResidualEncoderUNet", KWARGS, None, "test")
    weights = with_aliases(first_names(network), architecture)
    assert set(weights) == set(network.state_dict())
    assert not has_skips(weights)


def test_the_trusted_copy() -> None:
    """``.all_modules`` before ``.conv``; ``decoder.encoder`` only where there is nothing else."""
    one, two, three = (torch.full((2,), float(value)) for value in (1, 2, 3))
    block = "encoder.stem.convs.0"
    weights = {f"{block}.conv.bias": one, f"{block}.all_modules.0.bias": two, f"decoder.{block}.conv.bias": three}
    assert under_one_name(weights) == ({f"{block}.conv.bias": two}, 1)
    assert under_one_name({f"decoder.{block}.all_modules.1.bias": three}) == ({f"{block}.norm.bias": three}, 0)


def test_copies_that_are_equal_do_not_count_as_different_even_where_they_are_nan() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    weights = {"encoder.x.norm.bias": nan, "encoder.x.all_modules.1.bias": nan.clone()}
    assert under_one_name(weights)[1] == 0
