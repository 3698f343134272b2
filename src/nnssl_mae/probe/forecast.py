"""How long a probe will take, said before it starts: with a large network on a CPU it takes hours."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import torch

from nnssl_mae.probe.encoders import Extractor
from nnssl_mae.probe.features import PATCHES_A_SCAN
from nnssl_mae.probe.linear_probe import Exam
from nnssl_mae.progress import duration

_WORTH_SAYING = 60.0  # seconds
_SLOW_PATCH = 1.0  # seconds, beside which setting things up is nothing
_WITH_DECODER = 2  # times the work of an encoder


def patches_to_see(networks: int, scans: int, exam: Exam | None, reconstructions: int) -> int:
    """How many patches go through encoders.

    Args:
        networks: the checkpoint and the untrained ones that are not known yet.
        scans: that are looked at.
        exam: of the linear probe, in which each patch is seen for training and again for the test.
        reconstructions: ratios for each scan; each counts as two patches, as its decoder works too.
    """
    examined = 0 if exam is None else 2 * sum(len(task.corners) for task in exam.tasks)
    return networks * (PATCHES_A_SCAN * scans + examined) + _WITH_DECODER * reconstructions * scans


def seconds_of_a_patch(extract: Extractor, patch: Sequence[int]) -> float:
    """Wall time of one patch (D, H, W), measured; of a quick one the second time, as the first sets things up."""
    seconds = _timed(extract, patch)
    return seconds if seconds > _SLOW_PATCH else _timed(extract, patch)


def _timed(extract: Extractor, patch: Sequence[int]) -> float:
    start = monotonic()
    extract(torch.zeros(tuple(patch)))
    return monotonic() - start


def forecast(label: str, patches: int, seconds: float) -> str | None:
    """A sentence, or None where nobody has to wait.

    Args:
        label: of the checkpoint.
        patches: :func:`patches_to_see`.
        seconds: of each.
    """
    if patches * seconds < _WORTH_SAYING:
        return None
    return (
        f"Probing {label} will take about {duration(patches * seconds)}: {patches} patches of {seconds:.1f} s. Fewer "
        "scans (--most-scans), fewer untrained networks (--random) or a GPU take less."
    )
