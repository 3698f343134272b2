"""What preparing a catalogue will take: tries a few scans and scales up by their sizes."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from rich.console import Console

from nnssl_mae.catalogue.table import ACCEPTED, Catalogue, scan_of
from nnssl_mae.errors import UserError
from nnssl_mae.folders import environment, nnunet_folder
from nnssl_mae.memory import memory_budget, peak_memory
from nnssl_mae.parallel import in_processes
from nnssl_mae.plans import CONFIGURATION, describe_topology
from nnssl_mae.progress import duration, track
from nnssl_mae.scans.left_out import LeftOut, each
from nnssl_mae.scans.measure import fingerprint, measure_scan, samples_a_scan
from nnssl_mae.scans.memory import preprocessing_bytes
from nnssl_mae.scans.one_case import Target, Task, prepare_case
from nnssl_mae.scans.planning import plan_unlabelled
from nnssl_mae.scans.preprocess import BeyondStock
from nnssl_mae.scans.records import Failed
from nnssl_mae.scans.request import Request, drawn
from nnssl_mae.scans.voxel_size import voxel_line
from nnssl_mae.scans.workplace import data_folder_name

_TRIED = 8
_POOLS = 2  # of processes: one measures, one preprocesses
_MINUTE = 60.0  # below it, what else the machine does decides


@dataclass(frozen=True)
class Tried:
    """What one scan took, in one process."""

    case: str
    seconds: float
    stored_bytes: int
    peak_memory: float
    """Bytes; of the process since it began."""


@dataclass(frozen=True)
class Estimate:
    """What the whole is expected to take."""

    cases: int
    tried: tuple[Tried, ...]
    disk: float
    """Bytes."""
    cpu_seconds: float
    """Of preprocessing, on one core."""
    measuring_seconds: float
    """Of looking at scans for the plans, on one core."""
    starting_seconds: float
    """Until all processes have started, which is not divided among them."""
    processes: int
    """As many as were asked for, unless memory allows fewer."""
    memory: float
    """Bytes of all processes together."""
    spread: float
    """Relative standard error of the sums, from how much the tried scans differ."""

    @property
    def core_seconds(self) -> float:
        """Of one core that does all the work."""
        return self.cpu_seconds + self.measuring_seconds

    @property
    def seconds(self) -> float:
        """On this machine, with these processes."""
        return self.core_seconds / self.processes + self.starting_seconds


@dataclass(frozen=True)
class _Trial:
    """What a few scans have told."""

    tried: list[Tried]
    starting: float
    """Seconds until a process was ready for its first scan."""


def estimate(
    catalogue: Catalogue,
    request: Request,
    console: Console,
    more_left_out: Callable[[Catalogue], Sequence[LeftOut]] | None = None,
    tried: int = _TRIED,
) -> Estimate:
    """Prepares a few scans in a temporary folder and tells what all accepted ones will take. Nothing is kept.

    Args:
        catalogue: of the scans.
        request: as for preparing; plans are made from the tried scans only.
        console: for the result.
        more_left_out: as in :func:`nnssl_mae.scans.prepare.prepare`.
        tried: how many scans.

    Raises:
        UserError: there is nothing to prepare, or none of the tried scans can be.
    """
    left_out = {scan.case for scan in more_left_out(catalogue)} if more_left_out else set()
    wanted = catalogue.rows[(catalogue.rows["verdict"] == ACCEPTED) & ~catalogue.rows["case"].isin(left_out)]
    if wanted.empty:
        raise UserError(f"None of the {len(catalogue.rows)} scans can be used, so there is nothing to estimate")
    sample = wanted[wanted["case"].isin(drawn(wanted["case"], tried))]
    with tempfile.TemporaryDirectory() as temporary:
        plans, measuring = _plans(sample, request)
        trial = _try(sample, plans, request, Path(temporary), console)
    configuration = plans["configurations"][CONFIGURATION]
    result = _scaled(wanted, trial, measuring, configuration["spacing"], request)
    _report(result, catalogue, configuration, voxel_line(plans, request.recipe, wanted), console)
    return result


def _plans(sample: pandas.DataFrame, request: Request) -> tuple[dict[str, Any], float]:
    """The plans, and the seconds that a scan took to be measured for them."""
    data = request.recipe.data
    scans = [scan_of(row) for row in each(sample)]
    measure = partial(
        measure_scan,
        orientation=data.orientation,
        intensity_samples=samples_a_scan(len(scans)),
        beyond_stock=BeyondStock.of(data),
    )
    start = time.perf_counter()
    found = [measure(scan) for scan in scans]
    seconds = (time.perf_counter() - start) / len(scans)
    good = [measurement for measurement in found if not measurement.problem]
    if not good:
        raise UserError(
            f"None of the {len(scans)} scans that were tried can be used: {found[0].path} {found[0].problem}"
        )
    return plan_unlabelled(request.dataset, request.recipe, fingerprint(good), scans[0].path, len(scans)), seconds


def _try(
    sample: pandas.DataFrame, plans: Mapping[str, Any], request: Request, folder: Path, console: Console
) -> _Trial:
    target = Target(folder / data_folder_name(plans), folder / "unfinished")
    for path in (target.volumes, target.unfinished):
        path.mkdir()
    tasks = [Task(scan_of(row), "", 0.0) for row in each(sample)]
    # The first one is done twice: a process is slower at its first scan.
    tasks = [tasks[0], *tasks]
    work = partial(_timed, plans=plans, beyond_stock=BeyondStock.of(request.recipe.data), target=target)
    with environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        start = time.perf_counter()
        coming = track(in_processes(work, tasks, 1), "Trying scans", len(tasks), console)
        outcomes = [next(coming)]
        starting = time.perf_counter() - start - (outcomes[0].result.seconds if outcomes[0].result else 0.0)
        outcomes += coming
    results = [outcome.result for outcome in outcomes[1:] if outcome.result is not None]
    if not results:
        problem = next((outcome.failure.summary for outcome in outcomes if outcome.failure), "bad scans")
        raise UserError(f"None of the {len(sample)} scans that were tried could be prepared ({problem})")
    return _Trial(results, starting)


def _timed(task: Task, plans: Mapping[str, Any], beyond_stock: BeyondStock, target: Target) -> Tried | None:
    start = time.perf_counter()
    done = prepare_case(task, plans, beyond_stock, target)
    seconds = time.perf_counter() - start
    if isinstance(done, Failed):
        return None
    return Tried(task.scan.case, seconds, done.size + (done.exclusion_size or 0), peak_memory())


def _scaled(
    wanted: pandas.DataFrame, trial: _Trial, measuring: float, spacing: Sequence[float], request: Request
) -> Estimate:
    """What all wanted scans take; ``measuring`` is in seconds a scan."""
    tried = trial.tried
    is_resampled = request.recipe.data.spacing != "native"
    voxels = {row.case: _voxels(row, spacing if is_resampled else None) for row in each(wanted)}
    shares = np.array([sum(voxels[one.case]) for one in tried])
    everything = sum(sum(pair) for pair in voxels.values())
    stored = sum(after for _, after in voxels.values())
    seconds = np.array([one.seconds for one in tried])
    sizes = np.array([one.stored_bytes for one in tried])
    peak = np.nanmax([0.0, *(one.peak_memory for one in tried)])
    costs = [preprocessing_bytes(row, spacing if is_resampled else None) for row in each(wanted)]
    a_process = max(float(peak), float(np.mean(costs)))
    fitting = memory_budget(request.max_memory) / a_process
    processes = max(1, min(request.workers, len(wanted), int(fitting) if math.isfinite(fitting) else request.workers))
    return Estimate(
        cases=len(wanted),
        tried=tuple(tried),
        disk=float(sizes.sum() / sum(voxels[one.case][1] for one in tried) * stored),
        cpu_seconds=float(seconds.sum() / shares.sum() * everything),
        measuring_seconds=measuring * min(len(wanted), request.subsample),
        starting_seconds=_POOLS * trial.starting * max(1.0, processes / (os.cpu_count() or processes)),
        processes=processes,
        memory=processes * a_process,
        spread=_spread(seconds / shares),
    )


def _voxels(row: Any, spacing: Sequence[float] | None) -> tuple[float, float]:
    """Read, and stored at most: what cropping saves is alike in most scans, so it cancels in the ratio."""
    read = float(row.size_x) * float(row.size_y) * float(row.size_z)
    if spacing is None:
        return read, read
    return read, read * float(row.spacing_x) * float(row.spacing_y) * float(row.spacing_z) / math.prod(spacing)


def _spread(rates: np.ndarray[Any, Any]) -> float:
    return float(rates.std(ddof=1) / rates.mean() / math.sqrt(len(rates))) if len(rates) > 1 else math.nan


def _report(
    result: Estimate, catalogue: Catalogue, configuration: Mapping[str, Any], voxels: str, console: Console
) -> None:
    folder = nnunet_folder("nnUNet_preprocessed")
    free, gib = shutil.disk_usage(folder).free, 2**30
    seconds = sorted(one.seconds for one in result.tried)
    sizes = sorted(one.stored_bytes / 1e6 for one in result.tried)
    lines = [
        f"Scans: {result.cases} of {len(catalogue.rows)} in the catalogue.",
        f"Network: {describe_topology(configuration)}, batch {configuration['batch_size']}.",
        voxels,
        f"Tried: {len(result.tried)} scans, {seconds[0]:.1f} to {seconds[-1]:.1f} s and {sizes[0]:.1f} to "
        f"{sizes[-1]:.1f} MB each.",
        f"Disk: about {_size(result.disk)}; {_size(free)} are free in nnUNet_preprocessed.",
        _time_line(result),
        f"Memory: about {result.memory / gib:.1f} GiB, {result.memory / result.processes / gib:.1f} GiB a process.",
    ]
    if result.disk > free:
        lines.append("The disk is too small: free some space, or point nnUNet_preprocessed elsewhere.")
    if result.processes > (os.cpu_count() or result.processes):
        lines.append(f"This machine has {os.cpu_count()} cores: more processes than that make nothing faster.")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _time_line(result: Estimate) -> str:
    line = f"Time: {_about(result.seconds)} with {result.processes} processes on this machine"
    if result.core_seconds < _MINUTE:
        return f"{line}, their start included."
    spread = "" if math.isnan(result.spread) else f" (within about {2 * result.spread:.0%}, from how scans differ)"
    return f"{line}, {_about(result.core_seconds)} of one core{spread}."


def _about(seconds: float) -> str:
    return "under a minute" if seconds < _MINUTE else f"about {duration(seconds)}"


def _size(number: float) -> str:
    """``3.9 MB``, ``412 GB``, ``1.2 TB``."""
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e6:.3g} MB"
