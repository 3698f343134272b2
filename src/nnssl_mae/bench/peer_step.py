"""Training steps in the manner of others, written from descriptions, as baselines for timing.

Both draw the mask on the CPU in the training process, compute their loss at full resolution, scale the loss in fp16,
clip the gradient, step an SGD that is not fused, and read the loss back after every step, which waits for the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from nnssl_mae.bench.ceilings import DTYPES
from nnssl_mae.bench.peer_network import ReleasedStyleS3D, gathered_loss, repeated
from nnssl_mae.bench.step_setting import StepSetting
from nnssl_mae.networks.heads import freeze_unused_heads
from nnssl_mae.networks.planned import planned_network

_SGD: dict[str, Any] = {"lr": 1e-2, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
_CLIP = 12.0


def draw_visible(samples: int, grid: tuple[int, int, int], ratio: float) -> torch.Tensor:
    """Masks drawn on the CPU, ``floor(ratio * n)`` blocks hidden: float (B, 1, d, h, w), 1 = visible, 0 = hidden."""
    blocks = grid[0] * grid[1] * grid[2]
    masks = torch.ones(samples, blocks)
    for mask in masks:
        mask[torch.randperm(blocks)[: int(ratio * blocks + 1e-6)]] = 0
    return masks.reshape(samples, 1, *grid)


def dense_loss(prediction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Squared error times a mask of full resolution, divided by the number of hidden voxels of the batch.

    Args:
        prediction, target: (B, 1, D, H, W).
        visible: float (B, 1, D, H, W), 1 = visible, 0 = hidden.
    """
    hidden = 1 - visible
    return ((prediction - target) ** 2 * hidden).sum() / hidden.sum()


class PeerStep:
    """What both baselines share.

    Args:
        setting: recipe, sizes and device; of the recipe only sizes and mask are used.
        network: of the baseline.
    """

    def __init__(self, setting: StepSetting, network: nn.Module) -> None:
        self._setting, self._volumes = setting, setting.volumes()
        self.network: Any = network.to(setting.device).train()
        self._optimizer = torch.optim.SGD(self.network.parameters(), **_SGD)
        scaled = setting.device.type == "cuda" and setting.number_format == "fp16"
        self._scaler = torch.amp.GradScaler("cuda") if scaled else None

    def loss(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Of one batch: volumes (B, 1, D, H, W), float ``visible`` (B, 1, d, h, w) with 1 = visible."""
        raise NotImplementedError

    def __call__(self) -> float:
        """One step; waits for its loss."""
        setting = self._setting
        volumes = self._volumes.to(setting.device, non_blocking=True)
        visible = draw_visible(setting.batch, setting.grid, setting.ratio).to(setting.device, non_blocking=True)
        self._optimizer.zero_grad(set_to_none=True)
        with self._number_format():
            loss = self.loss(volumes, visible)
        self._update(loss)
        return float(loss.detach().cpu().numpy())

    def compile(self) -> None:
        """As nnU-Net compiles a network; the next step takes the time for it."""
        self.network = torch.compile(self.network)

    def parameters(self) -> list[torch.Tensor]:
        """Weights of the network."""
        return list(self.network.parameters())

    def _number_format(self) -> AbstractContextManager[Any]:
        if self._setting.number_format == "fp32":
            return nullcontext()
        return torch.autocast(self._setting.device.type, dtype=DTYPES[self._setting.number_format])

    def _update(self, loss: torch.Tensor) -> None:
        if self._scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
            self._optimizer.step()
            return
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self._scaler.step(self._optimizer)
        self._scaler.update()


class StockStyleDenseStep(PeerStep):
    """Plain MAE: the stock network sees volumes times a mask of full resolution."""

    def __init__(self, setting: StepSetting) -> None:
        torch.manual_seed(setting.recipe.seed)
        super().__init__(setting, freeze_unused_heads(planned_network(setting.architecture, 1, 1)))

    def loss(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        shown = repeated(visible, volumes.shape[2:])
        return dense_loss(self.network(volumes * shown), volumes, shown)


class ReleasedStyleS3DStep(PeerStep):
    """S3D as described in :mod:`nnssl_mae.bench.peer_network`, which tells what differs from ours."""

    def __init__(self, setting: StepSetting) -> None:
        torch.manual_seed(setting.recipe.seed)
        stock = freeze_unused_heads(planned_network(setting.architecture, 1, 1))
        super().__init__(setting, ReleasedStyleS3D(stock))

    def loss(self, volumes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """See the base class. The volume enters unhidden, as released code lets it."""
        return gathered_loss(self.network(volumes, visible), volumes, visible)
