"""How much memory the preprocessing of a scan takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

# Growth of a worker's peak resident memory at 1.6 to 8 million voxels, resampled to 0.1 to 7 times as many, isotropic
# and with thick slices: 11 to 15 bytes a voxel that is read and 12 to 16 a voxel that is stored; and a quarter more.
_BYTES_A_WORKER = 450e6  # of its own, besides the libraries that all share
_BYTES_A_VOXEL_READ = 16.0
_BYTES_A_VOXEL_STORED = 20.0


def preprocessing_bytes(row: Any, target_spacing: Sequence[float] | None) -> float:
    """About what one worker process takes at most while it preprocesses a scan.

    Args:
        row: of the catalogue, with sizes and spacings.
        target_spacing: mm; none if the scan is not resampled.
    """
    voxels = float(row.size_x) * float(row.size_y) * float(row.size_z)
    growth = 1.0
    if target_spacing is not None:
        growth = float(row.spacing_x) * float(row.spacing_y) * float(row.spacing_z) / math.prod(target_spacing)
    stored = voxels * (growth if math.isfinite(growth) else 1.0)
    return _BYTES_A_WORKER + _BYTES_A_VOXEL_READ * voxels + _BYTES_A_VOXEL_STORED * stored
