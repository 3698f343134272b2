"""From scans to ``nnUNet_preprocessed/Dataset900_Brains``: plan once, preprocess what is missing, put all together.

Work is done in a hidden folder beside the final one, which is renamed when whole. Whatever is killed when, the same
command continues; on a finished dataset it does what is new or changed. Several processes (shards) may work at once.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas
from rich.console import Console

from nnssl_mae.catalogue.checks import Limits
from nnssl_mae.catalogue.scan import refresh, scan_folders
from nnssl_mae.catalogue.table import ACCEPTED, Catalogue, scan_of
from nnssl_mae.console import say
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.files import GONE, as_json, read_json, write_first
from nnssl_mae.folders import environment
from nnssl_mae.journal import Journal
from nnssl_mae.memory import memory_budget
from nnssl_mae.parallel import FULL_DISK, Outcome, in_processes
from nnssl_mae.plans import CONFIGURATION, PLANS_BLOCK, describe_topology, read_block
from nnssl_mae.progress import track
from nnssl_mae.recipes.reading import parse_recipe
from nnssl_mae.scans.left_out import LEFT_OUT, LeftOut, counted, each, rejected
from nnssl_mae.scans.measure import Measurement, fingerprint, measure_scan, samples_a_scan
from nnssl_mae.scans.memory import preprocessing_bytes
from nnssl_mae.scans.merge import DATASET, Merged, merge
from nnssl_mae.scans.one_case import Task, failed, prepare_case
from nnssl_mae.scans.planning import check_fits, dataset_json, plan_unlabelled, topology_note
from nnssl_mae.scans.preprocess import BeyondStock
from nnssl_mae.scans.records import Failed, Finished, standing
from nnssl_mae.scans.request import NotOurs, Request, case_key, drawn, preprocessing_hash
from nnssl_mae.scans.voxel_size import voxel_line
from nnssl_mae.scans.workplace import CATALOGUE, FINGERPRINT, PLANS_FILE, Workplace, claim, read_plans

_SHOWN_PROBLEMS = 10
_ATTEMPTS = 20  # to do again what another process did at the same moment
_SECONDS_BETWEEN_ATTEMPTS = 0.5
_SPLITS = "splits_final.json"
_OF_KEYS = ["case", "source_hash", "frame", "bytes", "modified_ns"]  # rows of all columns take long to make
Item = TypeVar("Item")
Result = TypeVar("Result")

MoreLeftOut = Callable[[Catalogue], Sequence[LeftOut]]
"""Looks at a catalogue and names further scans to leave out."""


@dataclass(frozen=True)
class Prepared:
    """What came of a preparation."""

    folder: Path | None
    """Of the finished dataset; none while other shards are at work."""
    prepared: int
    """Cases in the dataset, or done so far."""
    left_out: int
    """Scans that are not in it, those that the catalogue had rejected included."""
    failed: int = 0
    """How many of these should be in it: accepted by the catalogue, or, of folders, rejected by a check."""
    waiting: int = 0
    """Cases that other shards have not done yet."""


def prepare(
    catalogue: Catalogue, request: Request, console: Console, more_left_out: MoreLeftOut | None = None
) -> Prepared:
    """Prepares the accepted scans of a catalogue for pre-training.

    Args:
        catalogue: files that have changed since it was made are looked at again.
        request: see there.
        console: for progress and counts.
        more_left_out: names scans that the catalogue accepts but that shall not be in the dataset.

    Raises:
        UserError: bad input, or another recipe than the dataset was begun with; nothing new is left behind.
        ResumableError: no space is left, or processes cannot start; what is done stays.
    """
    check_fits(request.recipe)
    with _at_work(request) as place:
        return _prepare(place, catalogue, request, console, more_left_out)


def prepare_folders(
    sources: Sequence[Path],
    request: Request,
    console: Console,
    limits: Limits,
    more_left_out: MoreLeftOut | None = None,
    **options: Any,
) -> Prepared:
    """Makes a catalogue of folders or files, inside the dataset, then does as :func:`prepare`.

    Args:
        sources: see :func:`nnssl_mae.catalogue.scan.scan_folders`, as for ``limits`` and ``options``.
        request: without shard.
        console: for progress and counts.
        more_left_out: as in :func:`prepare`.
    """
    if request.shard is not None:
        raise UserError(
            "--shard needs a catalogue, so that all shards see the same scans: make it once with "
            "`nnssl-mae scan FOLDER -o CATALOGUE`, then give CATALOGUE to every shard"
        )
    check_fits(request.recipe)
    with _at_work(request) as place:
        if place.is_update:
            check_roots(sources)
        folder = place.work / CATALOGUE
        place.borrow_catalogue()
        catalogue = scan_folders(sources, folder, limits, workers=request.workers, console=console, **options)
        done = _prepare(place, catalogue, request, console, more_left_out)
    return replace(done, failed=done.failed + int((catalogue.rows["check"] != "").sum()))


@contextlib.contextmanager
def _at_work(request: Request) -> Iterator[Workplace]:
    place = claim(request)
    try:
        yield place
    except (ResumableError, NotOurs):
        raise
    except UserError:
        if request.shard is None and not place.holds_work():  # other shards may be planning just now
            place.remove_all_but_catalogue()
        raise
    except OSError as error:
        if error.errno in FULL_DISK:
            raise _full(place) from error
        raise ResumableError(
            f"{type(error).__name__}: {error}; what is done stays: once that is repaired, the same command continues"
        ) from error


def _full(place: Workplace) -> ResumableError:
    return ResumableError(
        f"No space is left in {place.work.parent}; what is done stays: free some space and run the same command again, "
        "which continues"
    )


def _prepare(
    place: Workplace, catalogue: Catalogue, request: Request, console: Console, more_left_out: MoreLeftOut | None
) -> Prepared:
    accepted, selection = set(catalogue.accepted["case"]), request.selection_of(catalogue)
    catalogue = refresh(catalogue, workers=request.workers, console=console)
    lost = len(accepted - set(catalogue.accepted["case"]))
    if lost or place.is_update:
        check_roots([Path(root) for root in catalogue.settings.get("roots", [])])
    left_out = rejected(catalogue.rows[catalogue.rows["verdict"] != ACCEPTED])
    left_out += more_left_out(catalogue) if more_left_out else []
    wanted = catalogue.accepted[~catalogue.accepted["case"].isin({scan.case for scan in left_out})]
    if wanted.empty:
        raise UserError(f"None of the {len(catalogue.rows)} scans can be used:\n{_listed(left_out)}")
    for attempt in range(_ATTEMPTS):
        try:
            done = _done(place, wanted, selection, left_out, request, console)
            return replace(done, failed=done.failed + lost)
        except OSError as error:  # another process has put all together, or is doing so just now
            if error.errno not in GONE or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
            claim(replace(request, restart=False))
    raise AssertionError("the last attempt returns or raises")


def check_roots(roots: Sequence[Path]) -> None:
    """Makes sure that scans are gone because somebody removed them, and not because their disk is missing.

    Raises:
        ResumableError: a folder in which scans were found is not there, or is empty.
    """
    for root in roots:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            raise ResumableError(
                f"{root}, where scans were found before, is missing or empty, so all its scans would be taken out; "
                "mount its disk, or make the catalogue again without it (`nnssl-mae scan`)"
            )


def _done(
    place: Workplace,
    wanted: pandas.DataFrame,
    selection: bytes,
    left_out: Sequence[LeftOut],
    request: Request,
    console: Console,
) -> Prepared:
    place.records.mkdir(exist_ok=True)
    place.hold(selection, request)
    plans = _plans(place, wanted, request, console)
    steps = preprocessing_hash(plans, BeyondStock.of(request.recipe.data))
    keys = {row.case: case_key(_source(row), row.frame, steps) for row in each(wanted[_OF_KEYS])}
    place.make_folders(plans)
    finished = standing(place.valid_records(plans, keys)).done
    todo = wanted[[case not in finished and request.is_mine(case) for case in wanted["case"]]]
    if finished and len(todo):
        say(console, f"{len(finished)} of {len(keys)} scans are prepared already.")
    _preprocess(place, plans, _tasks(todo, keys, plans, request), len(todo), request, console)

    now = standing(place.valid_records(plans, keys))
    paths = dict(zip(wanted["case"], wanted["path"], strict=True))
    failures = [LeftOut(paths[case], case, found.check, found.detail) for case, found in now.failed.items()]
    missing = len(keys) - len(now.done) - len(failures)
    if missing and request.shard is not None:
        say(console, f"{missing} of {len(keys)} scans are left to other shards; the last one puts all together.")
        return Prepared(None, len(now.done), len(left_out) + len(failures), len(failures), missing)
    if not now.done and not missing:
        raise UserError(f"None of the {len(keys)} scans can be used:\n{_listed(failures)}")
    had_splits = (place.final / _SPLITS).is_file()
    place.check_held(selection, request)
    merged = merge(place, plans, wanted, keys, [*left_out, *failures], request.stored())
    _report(merged, request, [*left_out, *failures], failures, had_splits, console)
    return Prepared(place.final, merged.cases, len(left_out) + len(failures), len(failures))


def _source(row: Any) -> str:
    """Tells a scan from its changed self: by its bytes; by size and time where the catalogue has only read headers."""
    return row.source_hash or f"{row.bytes} {row.modified_ns}"


def _plans(place: Workplace, wanted: pandas.DataFrame, request: Request, console: Console) -> dict[str, Any]:
    """The plans of the dataset; made once, so that scans that come later change nothing for those that are there."""
    if (place.home / PLANS_FILE).is_file():
        return _checked(read_plans(place.home), request, place)
    if not (place.work / FINGERPRINT).is_file():
        write_first(place.work / FINGERPRINT, as_json(fingerprint(_measurements(wanted, request, console))))
    numbers = read_json(place.work / FINGERPRINT, f"remove {place.work} and prepare again")
    example = Path(wanted["path"].iloc[0])
    plans = plan_unlabelled(request.dataset, request.recipe, numbers, example, len(wanted))
    write_first(place.work / DATASET, as_json(dataset_json(len(wanted))))
    write_first(place.work / PLANS_FILE, as_json(plans))
    plans = _checked(read_plans(place.home), request, place)
    configuration = plans["configurations"][CONFIGURATION]
    say(console, f"Network: {describe_topology(configuration)}, batch {configuration['batch_size']}.")
    say(console, voxel_line(plans, request.recipe, wanted))
    edges = configuration[PLANS_BLOCK]["block_edges"]
    if edges != [request.recipe.masking.block_size] * 3:
        size = request.recipe.masking.block_size
        say(console, f"Blocks: {edges} voxels, because {size} does not divide the patch.")
    if note := topology_note(plans, request.published):
        say(console, note, style="yellow")
    return plans


def _checked(plans: dict[str, Any], request: Request, place: Workplace) -> dict[str, Any]:
    """The plans, if the recipe in them is the request's: another command may have begun anew while this one planned."""
    block = read_block(plans["configurations"][CONFIGURATION], "pretrain", plans["plans_name"])
    recipe = parse_recipe(block["recipe"], f"in {place.home / PLANS_FILE}")
    if (recipe.data, recipe.masking) != (request.recipe.data, request.recipe.masking):
        raise NotOurs(
            f"{place.home / PLANS_FILE} holds another recipe than {request.dataset} was begun with; "
            f"remove {place.home} and prepare again"
        )
    return plans


def _measurements(wanted: pandas.DataFrame, request: Request, console: Console) -> list[Measurement]:
    """Of a random sample of the scans, sorted by case. Bad ones are left out here; preprocessing says why."""
    sample = wanted[wanted["case"].isin(drawn(wanted["case"], request.subsample))].sort_values("case")
    costs = {row.case: preprocessing_bytes(row, None) for row in each(sample)}
    measure = partial(
        measure_scan,
        orientation=request.recipe.data.orientation,
        intensity_samples=samples_a_scan(len(sample)),
        beyond_stock=BeyondStock.of(request.recipe.data),
    )
    scans = [scan_of(row) for row in each(sample)]
    found: dict[str, Measurement] = {}
    problems: list[LeftOut] = []
    label = "Measuring" if len(sample) == len(wanted) else f"Measuring a sample of {len(wanted)} scans"
    for outcome in _in_processes(measure, scans, lambda scan: costs[scan.case], label, len(scans), request, console):
        scan = outcome.item
        if outcome.result is not None:
            found[scan.case] = outcome.result
        elif outcome.failure is not None:
            failure = failed(Task(scan, "", 0.0), outcome.failure)
            problems.append(LeftOut(str(scan.path), scan.case, failure.check, failure.detail))
    good = [found[case] for case in sorted(found) if not found[case].problem]
    if not good:
        problems += [LeftOut(str(m.path), case, "", m.problem or "") for case, m in found.items()]
        raise UserError(f"None of the {len(sample)} scans that were measured can be used:\n{_listed(problems)}")
    return good


def _tasks(
    todo: pandas.DataFrame, keys: Mapping[str, str], plans: Mapping[str, Any], request: Request
) -> Iterator[Task]:
    is_resampled = request.recipe.data.spacing != "native"
    spacing = plans["configurations"][CONFIGURATION]["spacing"] if is_resampled else None
    for row in each(todo):
        stamp = (int(row.bytes), int(row.modified_ns))
        yield Task(scan_of(row), keys[row.case], preprocessing_bytes(row, spacing), stamp)


def _preprocess(
    place: Workplace, plans: dict[str, Any], tasks: Iterable[Task], total: int, request: Request, console: Console
) -> None:
    """Does the tasks and writes down what came of each. The records are what counts afterwards."""
    if not total:
        return
    target = place.target(plans)
    work = partial(prepare_case, plans=plans, beyond_stock=BeyondStock.of(request.recipe.data), target=target)
    with Journal(place.new_journal(request.shard)) as journal:
        for outcome in _in_processes(work, tasks, lambda task: task.cost, "Preprocessing", total, request, console):
            journal.append(_record(outcome, place, target.volumes).as_record())


def _record(outcome: Outcome[Task, Finished | Failed], place: Workplace, volumes: Path) -> Finished | Failed:
    if outcome.result is not None:
        return outcome.result
    assert outcome.failure is not None
    if outcome.failure.disk_is_full:
        raise _full(place)
    # A network disk may still show the folder for a while, so the error counts too.
    is_ours = outcome.failure.errno == errno.ESTALE or str(place.work) in outcome.failure.summary
    if not volumes.exists() or (outcome.failure.errno in GONE and is_ours):
        raise FileNotFoundError(errno.ENOENT, "The work folder is gone", str(volumes))
    return failed(outcome.item, outcome.failure)


def _in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    cost: Callable[[Item], float],
    label: str,
    total: int,
    request: Request,
    console: Console,
) -> Iterator[Outcome[Item, Result]]:
    # One thread a process: the processes are what runs in parallel, and sums do not depend on the machine.
    with environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        outcomes = in_processes(work, items, min(request.workers, total), cost, memory_budget(request.max_memory))
        yield from track(outcomes, label, total, console)


def _report(
    merged: Merged,
    request: Request,
    left_out: Sequence[LeftOut],
    failures: Sequence[LeftOut],
    had_splits: bool,
    console: Console,
) -> None:
    if failures:
        say(console, f"{len(failures)} scans could not be prepared:\n{_listed(failures)}", style="yellow")
    if left_out:
        say(console, f"Left out: {counted(left_out)}; {LEFT_OUT} in the dataset lists them.")
    if not merged.is_changed:
        say(console, f"Nothing has changed: {request.dataset} holds all {merged.cases} scans already.")
        return
    changes = f"{merged.added} new, {merged.replaced} made anew, {merged.removed} removed"
    say(console, f"{request.dataset} holds {merged.cases} scans ({changes}).")
    if had_splits and (merged.added or merged.removed):
        say(
            console,
            f"{_SPLITS} of {request.dataset} still lists the old cases: nnU-Net trains the numbered folds on these. "
            "Remove it if no training has begun; fold 'all' takes every case.",
            style="yellow",
        )


def _listed(scans: Sequence[LeftOut]) -> str:
    lines = [f"  {scan.path} {scan.detail}" for scan in sorted(scans)[:_SHOWN_PROBLEMS]]
    more = [f"  ... and {len(scans) - _SHOWN_PROBLEMS} more"] if len(scans) > _SHOWN_PROBLEMS else []
    return "\n".join([*lines, *more])
