"""From folders of scans to ``nnUNet_preprocessed/Dataset900_Brains``: find, measure, plan, preprocess.

Everything is written into a hidden folder beside the final one, which is renamed when whole. A run that was killed
is continued by the same command; bad input leaves nothing behind.
"""

from __future__ import annotations

import errno
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nnssl_mae.catalogue.find import Scan, find_scans
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.files import remove_leftovers, short_hash, write_json
from nnssl_mae.folders import dataset_name, datasets_with_number, nnunet_folder
from nnssl_mae.plans import CONFIGURATION, PLANS_BLOCK, PRETRAINING_PLANS, describe_topology
from nnssl_mae.recipes.pretraining import DataRecipe, Recipe
from nnssl_mae.scans.cases import CaseRow, write_cases
from nnssl_mae.scans.foreground import encode_occupancy, foreground_mask
from nnssl_mae.scans.measure import Measurement, fingerprint, measure_scan, samples_a_scan
from nnssl_mae.scans.planning import READERS, dataset_json, plan_unlabelled, topology_note
from nnssl_mae.scans.preprocess import preprocess
from nnssl_mae.scans.storage import (
    ENDING,
    EXCLUDE_SUFFIX,
    exclusion_path,
    open_volume,
    write_exclusion,
    write_volume,
)

_SHOWN_PROBLEMS = 10
Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare(
    sources: Sequence[Path],
    number: int,
    name: str,
    recipe: Recipe,
    published: Recipe,
    console: Console,
    subject_regex: str | None = None,
    skip_bad: bool = False,
    workers: int = 2,
    exclude_suffix: str = EXCLUDE_SUFFIX,
) -> Path:
    """Prepares unlabelled scans for pre-training.

    Args:
        sources: folders or files of NIfTI scans.
        number, name: of the new nnU-Net dataset.
        recipe: with the user's changes; ``published`` is the same recipe without them.
        subject_regex: see :func:`nnssl_mae.catalogue.find.find_scans`.
        skip_bad: leave unusable scans out and say so, instead of stopping.
        workers: processes.
        exclude_suffix: what marks the exclusion mask beside a scan, see
            :func:`nnssl_mae.catalogue.find.find_scans`.

    Returns:
        the folder ``nnUNet_preprocessed/DatasetXXX_Name``.

    Raises:
        UserError: bad input; nothing is left behind.
    """
    full_name = dataset_name(number, name)
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    if used := datasets_with_number(number):
        raise UserError(f"Dataset number {number} is in use by {', '.join(used)}; choose another with -d")
    scans = _find(sources, subject_regex, exclude_suffix, console)
    scans, measurements = _usable(scans, recipe.data, skip_bad, workers, console)

    numbers = fingerprint(measurements)
    plans = plan_unlabelled(full_name, recipe, numbers, scans[0].path, len(scans))
    configuration = plans["configurations"][CONFIGURATION]
    console.print(f"Network: {describe_topology(configuration)}, batch {configuration['batch_size']}.")
    edges = configuration[PLANS_BLOCK]["block_edges"]
    if edges != [recipe.masking.block_size] * 3:
        console.print(f"Blocks: {edges} voxels, because {recipe.masking.block_size} does not divide the patch.")
    if note := topology_note(plans, published):
        console.print(note, style="yellow")

    staging = _staging(preprocessed, full_name, [[_identity(scan) for scan in scans], plans])
    try:
        volumes = staging / configuration["data_identifier"]
        volumes.mkdir(exist_ok=True)
        rows = _preprocess(scans, plans, volumes, recipe.data.clip_percentile, workers, console)
    except ResumableError:
        raise
    except UserError:
        shutil.rmtree(staging)
        raise
    # Of workers that were killed while they wrote: nnU-Net refuses a data folder with files of other endings.
    for folder in (staging, volumes):
        remove_leftovers(folder)
    write_cases(volumes, rows)
    write_json(staging / "dataset_fingerprint.json", numbers)
    write_json(staging / "dataset.json", dataset_json(len(scans)))
    write_json(staging / f"{PRETRAINING_PLANS}.json", plans)
    staging.replace(preprocessed / full_name)
    return preprocessed / full_name


def _find(sources: Sequence[Path], subject_regex: str | None, exclude_suffix: str, console: Console) -> list[Scan]:
    found = find_scans(sources, subject_regex, exclude_suffix)
    masks = sum(scan.exclude is not None for scan in found.scans)
    subjects = len({scan.subject for scan in found.scans})
    note = f", {masks} with an exclusion mask" if masks else ""
    console.print(f"Found {len(found.scans)} scans of {subjects} subjects{note}.")
    if found.lonely_masks:
        listing = _listed([f"  {mask}" for mask in found.lonely_masks])
        console.print(
            f"{len(found.lonely_masks)} files are exclusion masks by their names (*{exclude_suffix}), but no scan lies "
            f"beside them; they are not used (for scans, pass another --exclude-suffix):\n{listing}",
            style="yellow",
            highlight=False,
            markup=False,
        )
    return found.scans


def _listed(lines: Sequence[str]) -> str:
    more = [f"  ... and {len(lines) - _SHOWN_PROBLEMS} more"] if len(lines) > _SHOWN_PROBLEMS else []
    return "\n".join([*lines[:_SHOWN_PROBLEMS], *more])


def _usable(
    scans: Sequence[Scan], data: DataRecipe, skip_bad: bool, workers: int, console: Console
) -> tuple[list[Scan], list[Measurement]]:
    """The scans that can be used and their measurements, in the order of ``scans``."""
    measure = partial(
        measure_scan,
        reader_name=READERS[data.orientation],
        intensity_samples=samples_a_scan(len(scans)),
        clip_percentile=data.clip_percentile,
    )
    found = {m.path: m for m in _in_parallel(measure, scans, workers, "Checking scans", console)}
    bad = [m for scan in scans if (m := found[scan.path]).problem]
    listing = _listed([f"  {m.path} {m.problem}" for m in bad])
    if bad and not skip_bad:
        raise UserError(
            f"{len(bad)} of {len(scans)} scans cannot be used:\n{listing}\n"
            "Remove or repair them, or pass --skip-bad to leave them out"
        )
    if len(bad) == len(scans):
        raise UserError(f"None of the {len(scans)} scans can be used:\n{listing}")
    if bad:
        console.print(
            f"Left out {len(bad)} of {len(scans)} scans:\n{listing}", style="yellow", highlight=False, markup=False
        )
    good = [scan for scan in scans if not found[scan.path].problem]
    return good, [found[scan.path] for scan in good]


def _identity(scan: Scan) -> list[object]:
    """What tells that a scan is still the one that an earlier, killed run preprocessed."""
    identity: list[object] = [scan.case, scan.subject]
    for path in (scan.path, scan.exclude):
        status = path.stat() if path else None
        identity += [str(path.resolve()), status.st_size, status.st_mtime_ns] if path and status else []
    return identity


def _staging(preprocessed: Path, full_name: str, request: Any) -> Path:
    """The hidden folder of this request; what an earlier, different request left there is removed."""
    digest = short_hash(request)
    for old in preprocessed.glob(f".{full_name}.*.preparing"):
        if digest not in old.name:
            shutil.rmtree(old)
    staging = preprocessed / f".{full_name}.{digest}.preparing"
    staging.mkdir(exist_ok=True)
    return staging


def _preprocess(
    scans: Sequence[Scan],
    plans: dict[str, Any],
    folder: Path,
    clip_percentile: float | None,
    workers: int,
    console: Console,
) -> list[CaseRow]:
    work = partial(preprocess_scan, plans=plans, folder=folder, clip_percentile=clip_percentile)
    rows = []
    try:
        for result in _in_parallel(work, scans, workers, "Preprocessing", console):
            if isinstance(result, str):
                raise UserError(result)
            rows.append(result)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ResumableError(
            f"No space is left in {folder.parent.parent} after {len(rows)} of {len(scans)} scans; free some and run "
            "the same command again, which continues"
        ) from error
    return sorted(rows, key=lambda row: row.case)


def preprocess_scan(
    scan: Scan, plans: dict[str, Any], folder: Path, clip_percentile: float | None = None
) -> CaseRow | str:
    """Runs nnU-Net's preprocessor on one scan and stores volume and exclusion mask, unless they are there already.

    Returns:
        the row of the case table, or the sentence that says why the scan cannot be stored.
    """
    target = folder / f"{scan.case}{ENDING}"
    if target.exists():
        volume = open_volume(target)[:].astype(np.float32)
    else:
        manager = PlansManager(plans)
        configuration = manager.get_configuration(CONFIGURATION)
        done = preprocess(scan, manager, configuration, clip_percentile)
        volume = done.volume
        try:
            # The mask first: a volume that is there says that its mask is.
            if done.excluded is not None and done.excluded.any():
                write_exclusion(exclusion_path(folder, scan.case), done.excluded, configuration.patch_size)
            write_volume(target, volume, configuration.patch_size)
        except ValueError as error:
            return f"{scan.path} cannot be stored: {error}; leave it out or repair it"
        volume = volume.astype(np.float16).astype(np.float32)
    low, high = np.percentile(volume, (0.5, 99.5))
    foreground = encode_occupancy(foreground_mask(volume[0]))
    return CaseRow(scan.case, scan.subject, str(scan.path), volume.shape[1:], float(low), float(high), foreground)


def _in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, label: str, console: Console
) -> Iterator[Result]:
    """Results as they finish, in processes, with a progress bar; only a few items wait in memory at a time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=len(items))
        for result in _pool_results(work, items, workers):
            progress.advance(task)
            yield result
    if not console.is_terminal:
        console.print(f"{label}: {len(items)} done.")


def _pool_results(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    remaining = iter(items)
    # Spawned, not forked: torch and blosc2 hold threads that do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        running: set[Future[Result]] = {pool.submit(work, item) for item in islice(remaining, 2 * workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, item) for item in islice(remaining, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ResumableError(
            "A worker process was killed, most likely because memory ran out; run the same command again "
            "with fewer processes (-np 1)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
