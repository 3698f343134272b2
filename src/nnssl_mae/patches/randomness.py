"""Every random number of a run as a function of where it is used, so that runs can be repeated and resumed."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

_TRAINING, _VALIDATION, _BATCH, _ORDER = 1, 2, 3, 4


def training_rng(seed: int, epoch: int, iteration: int, rank: int, sample: int) -> np.random.Generator:
    """The generator of one training patch, the same whatever process loads it."""
    return np.random.default_rng([_TRAINING, seed, epoch, iteration, rank, sample])


def validation_rng(seed: int, case: str) -> np.random.Generator:
    """The generator of one validation case, the same in every epoch and beside any other cases."""
    return np.random.default_rng([_VALIDATION, seed, zlib.crc32(case.encode())])


def batch_rng(seed: int, epoch: int, iteration: int) -> np.random.Generator:
    """The generator of what all samples of a step share, the same in every process of a distributed run."""
    return np.random.default_rng([_BATCH, seed, epoch, iteration])


def epoch_order(seed: int, epoch: int, n_volumes: int) -> NDArray[np.int64]:
    """The order in which an epoch goes through all volumes: a permutation of 0 .. n - 1, another one each epoch."""
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(n_volumes)


@contextlib.contextmanager
def global_generators(rng: np.random.Generator) -> Iterator[None]:
    """Seeds numpy's and torch's global generators from ``rng`` and restores them afterwards.

    batchgeneratorsv2 draws from both.
    """
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()
    np.random.seed(rng.integers(2**32, dtype=np.uint32))
    torch.default_generator.manual_seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
