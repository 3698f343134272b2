"""What the machine could do at best, measured, and how much a training step asks of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Number formats by the names that recipes have for them."""
_MATMUL_EDGE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}  # far more than any cache holds
_TRIES = 8


@dataclass(frozen=True)
class Ceilings:
    """The best that was seen of this device in this run."""

    matmul: float
    """FLOP/s of a large matrix product in one number format."""
    copy: float
    """Bytes/s of a large copy, read and written bytes both counted."""


@dataclass(frozen=True)
class Work:
    """What one training step asks for."""

    flops: int
    """Of convolutions and matrix products, forward and backward; a multiplication and an addition are two."""
    kept_bytes: int
    """Of floating-point activations that the forward pass keeps for the backward pass, each storage once."""

    @property
    def moved_bytes(self) -> int:
        """An estimate of the memory traffic that cannot be avoided: ``2 * kept_bytes``.

        Each kept activation is written once by the forward pass and read once by the backward pass. Weights, gradients
        of activations and every intermediate that a fused kernel could spare are left out, so real traffic is larger.
        """
        return 2 * self.kept_bytes

    def flop_floor(self, ceilings: Ceilings) -> float:
        """Seconds that the arithmetic alone would take: ``flops / matmul ceiling``."""
        return self.flops / ceilings.matmul

    def byte_floor(self, ceilings: Ceilings) -> float:
        """Seconds that the estimated traffic alone would take: ``moved_bytes / copy ceiling``."""
        return self.moved_bytes / ceilings.copy


def measure_ceilings(device: torch.device, number_format: str) -> Ceilings:
    """Times a large matrix product and a large copy on the device.

    Args:
        device: CPU or GPU.
        number_format: fp32, fp16 or bf16. On a GPU the product of fp32 is in TF32, as cuDNN's convolutions of 32-bit
            numbers are by default.
    """
    return Ceilings(matmul_ceiling(device, DTYPES[number_format]), copy_ceiling(device))


def matmul_ceiling(device: torch.device, dtype: torch.dtype, edge: int | None = None) -> float:
    """FLOP/s of the fastest of several products of square matrices.

    Args:
        device: CPU or GPU.
        dtype: of the numbers.
        edge: of the matrices; none chooses one that keeps the device busy.
    """
    edge = edge or _MATMUL_EDGE[device.type]
    one = torch.randn(edge, edge, device=device).to(dtype)
    result = torch.empty_like(one)
    with _fast_products():
        return 2 * edge**3 / _fastest(partial(torch.mm, one, one, out=result), device)


def copy_ceiling(device: torch.device, size: int | None = None) -> float:
    """Bytes/s, read and written together, of the fastest of several copies of ``size`` bytes within the device."""
    size = size or _COPY_BYTES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(partial(target.copy_, source), device)


def settled(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_work(step: Callable[[], object], parameters: Iterable[torch.Tensor]) -> Work:
    """Runs one training step and counts.

    Convolutions inside of own autograd functions are seen as well: counting happens where operators are dispatched.

    Args:
        step: forward, backward and optimiser; not compiled, of which the operators cannot be seen.
        parameters: of the network; they are kept for the backward pass, but are no activations.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        step()
    return Work(counter.get_total_flops(), sum(kept.values()))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several runs after one that does not count."""
    work()
    times = []
    for _ in range(_TRIES):
        settled(device)
        start = perf_counter()
        work()
        settled(device)
        times.append(perf_counter() - start)
    return min(times)


@contextlib.contextmanager
def _fast_products() -> Iterator[None]:
    """Allows TF32 for matrix products, which torch by default allows for convolutions only."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
