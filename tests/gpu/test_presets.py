"""One step of every preset at its real size, in 16 bit against 32 bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl_mae.masking import sample_hidden
from nnssl_mae.networks.pretraining import pretraining_network
from nnssl_mae.objectives import reconstruction_loss
from nnssl_mae.plans import network_configuration
from nnssl_mae.recipes.reading import load_recipe
from tests.networks.architectures import architecture
from tests.presets import PRESETS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_real_size_step_in_16_bit_is_near_the_one_in_32_bit(name: str, dtype: torch.dtype) -> None:
    recipe = load_recipe(name)
    block = recipe.masking.block_size
    planned = network_configuration(architecture(), recipe.network, (1.0, 1.0, 1.0), block)
    torch.manual_seed(0)
    network = pretraining_network(planned["architecture"], 1, recipe.network, recipe.masking.hidden_value)
    network.cuda().eval()  # without random paths
    grid = [size // block for size in planned["patch_size"]]
    hidden = sample_hidden(grid, 0.6, np.random.default_rng(0))[None].cuda()
    volumes = torch.randn(1, 1, *planned["patch_size"], device="cuda")

    def step(autocast: bool) -> tuple[float, torch.Tensor]:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=dtype, enabled=autocast):
            prediction = network(volumes, hidden)
        loss = reconstruction_loss(prediction, volumes, hidden, recipe.loss)
        loss.backward()
        norms = [p.grad.float().norm() for p in network.parameters() if p.grad is not None]
        return loss.item(), torch.stack(norms)

    expected, wide = step(autocast=False)
    found, narrow = step(autocast=True)
    assert found == pytest.approx(expected, rel=0.02)
    assert torch.isfinite(narrow).all()
    assert narrow.norm().item() == pytest.approx(wide.norm().item(), rel=0.1)
