import pytest
import torch

from nnssl_mae.recipes.pretraining import OptimiserRecipe
from nnssl_mae.training.optimisers import make_optimizer


def weights_after(gradients: list[float], fused: bool) -> torch.Tensor:
    """A weight of ones after steps with these gradients under an fp16 scaler, on the CPU's form of both kernels."""
    parameter = torch.nn.Parameter(torch.ones(1000))
    optimizer = make_optimizer([parameter], OptimiserRecipe(learning_rate=0.1), fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in gradients:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale((parameter * gradient).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return parameter.detach()


@pytest.mark.parametrize("gradients", [[float("inf"), 1.0, 2.0], [1.0, float("inf"), 2.0], [1.0, 2.0, 3.0]])
def test_fused_steps_equal_plain_ones_also_after_an_overflow_in_the_first_step(gradients: list[float]) -> None:
    """torch's fused SGD would train on uninitialised memory after such a first step."""
    torch.testing.assert_close(weights_after(gradients, fused=True), weights_after(gradients, fused=False))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_run_from_another_device_continues_with_this_devices_kernel(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizers = [make_optimizer([parameter], OptimiserRecipe(name=name), fused) for fused in (False, True)]
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert optimizers[1].param_groups[0]["fused"] is True
