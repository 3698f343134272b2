"""``nnssl-mae probe``: is a pre-training worth fine-tuning, and when to stop?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.inputs import chosen_device, writing_to
from nnssl_mae.files import short_hash, unique_word, write_json
from nnssl_mae.networks.pretraining import PretrainingNetwork
from nnssl_mae.probe.chosen import ChosenScans, choose_checkpoints, choose_scans
from nnssl_mae.probe.collapse import Use
from nnssl_mae.probe.encoders import (
    RAW_FEATURES,
    features_of,
    pretrained_encoder,
    random_encoder,
    raw_features,
)
from nnssl_mae.probe.features import Patch, patches_of, use_of_stages
from nnssl_mae.probe.figure import draw_probe
from nnssl_mae.probe.forecast import forecast, patches_to_see, seconds_of_a_patch
from nnssl_mae.probe.linear_probe import Exam, Marks, examine, set_exam
from nnssl_mae.probe.reconstruction import RATIOS, Reconstructions, reconstructing, reconstructions
from nnssl_mae.probe.result import Collapse, LinearProbe, Probed, as_json
from nnssl_mae.probe.tables import print_probe
from nnssl_mae.probe.verdict import trend, verdict
from nnssl_mae.probe.volumes import (
    ProbeScan,
    patch_of,
    prepared_scan,
    preprocessing_key,
    reading_of,
    scan_problem,
    usable,
)
from nnssl_mae.progress import track

FEWEST_RANDOM, USUAL_RANDOM = 3, 5
Result = TypeVar("Result")
Steps = Iterator[Probed | None]


@dataclass(frozen=True)
class Wishes:
    """What to look at, and how long."""

    scans: tuple[Path, ...] = ()
    labels: Path | None = None
    dataset: int | None = None
    """A labelled dataset of nnU-Net, in place of ``scans`` and ``labels``."""
    ratios: tuple[float, ...] = RATIOS
    random_networks: int = USUAL_RANDOM
    most_scans: int = 8
    seed: int = 0
    every: bool = False
    """Of a folder all of its checkpoints."""
    subject_regex: str | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is not possible; give 0 or a positive whole number")
        if self.most_scans < 1:
            raise UserError(f"--most-scans {self.most_scans} is not possible; give 1 or more")
        if self.random_networks < FEWEST_RANDOM:
            raise UserError(
                f"--random {self.random_networks} is not enough to tell a difference from a lucky draw; give at least "
                f"{FEWEST_RANDOM}"
            )
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise UserError(f"A ratio of {ratio:g} is not possible; give shares between 0 and 1, such as 0.75")


def probe(
    checkpoints: Sequence[str],
    wishes: Wishes,
    console: Console,
    out: Path | None = None,
    device: str | None = None,
    show: bool = True,
) -> list[Probed]:
    """Looks at each checkpoint, prints tables and a verdict, and writes ``probe.json`` and ``probe.png``.

    Args:
        checkpoints: files, folders, or ``hf://owner/name``.
        wishes: what to look at.
        console: for progress and tables.
        out: folder; made if need be. Nothing is written without it.
        device: ``cpu``, ``cuda``, or None for a GPU where there is one.
        show: print tables and verdict.

    Returns:
        one for each checkpoint, by epochs.

    Raises:
        UserError: bad checkpoint, scan, labels, option or folder; then nothing is written.
    """
    where = chosen_device(device)
    _check_out(out)
    paths = choose_checkpoints(checkpoints, wishes.every)
    readings = dict.fromkeys(reading_of(usable(read_checkpoint(path), path)[0]) for path in paths)
    problem_of = partial(scan_problem, readings=tuple(readings))
    chosen = choose_scans(
        wishes.scans, wishes.labels, wishes.dataset, wishes.most_scans, wishes.subject_regex, problem_of
    )
    bench = _Bench(chosen, wishes, where, console)
    found = []
    for path in paths:
        checkpoint, notes = usable(read_checkpoint(path), path)
        with _within_memory():
            steps, total = bench.steps(checkpoint, path, [*chosen.notes, *checkpoint.notes, *notes])
            found.append(_last(track(steps, f"Probing {checkpoint.origin.label}", total, console)))
    if show:
        print_probe(found, console)
    if out is not None:
        _write(found, wishes, out)
        say(console, f"Wrote probe.json and probe.png to {out}")
    return found


def as_document(found: Sequence[Probed], wishes: Wishes) -> dict[str, Any]:
    """Everything for programs: plain values, no path, the same for the same input and seed."""
    return {
        "seed": wishes.seed,
        "raw_intensities": RAW_FEATURES,
        "checkpoints": [
            {**as_json(each), "verdict": {"worth": answer.worth, "reasons": [*answer.reasons, answer.headline]}}
            for each in found
            for answer in [verdict(each)]
        ],
        "when_to_stop": trend(found),
    }


def print_document(found: Sequence[Probed], wishes: Wishes) -> None:
    """:func:`as_document` on stdout."""
    print(json.dumps(as_document(found, wishes), indent=4))


def _last(steps: Iterator[Result | None]) -> Result:
    *_, last = steps
    assert last is not None
    return last


@contextlib.contextmanager
def _within_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError("The GPU has too little memory for this patch and network; use --device cpu") from error


@dataclass
class _Bench:
    """The scans of a probe, and what was found out about untrained networks: checkpoints of one run share both."""

    chosen: ChosenScans
    wishes: Wishes
    device: torch.device
    console: Console
    _scans: dict[str, list[ProbeScan]] = field(default_factory=dict)
    _untrained: dict[str, tuple[tuple[tuple[Use, ...], ...], tuple[Marks, ...], Marks | None]] = field(
        default_factory=dict
    )

    def steps(self, checkpoint: Checkpoint, path: object, notes: list[str]) -> tuple[Steps, int]:
        """The work on a checkpoint, in steps of which the last is the result, and how many they are."""
        patch = patch_of(checkpoint, path)
        encoder = pretrained_encoder(checkpoint, path)
        network = reconstructing(checkpoint)
        scans = self._prepared(checkpoint)
        exam = set_exam(scans, patch, self.chosen.names, self.wishes.seed) if self.chosen.labels else None
        key = short_hash([preprocessing_key(checkpoint), patch, checkpoint.architecture])
        contestants = 1 if key in self._untrained else 2 + self.wishes.random_networks
        total = 1 + (0 if isinstance(network, str) else len(scans) + 1) + contestants
        total += 0 if exam is None else contestants * (2 * len(exam.tasks) + 1)
        ratios = 0 if isinstance(network, str) else len(self.wishes.ratios) + 1
        patches = patches_to_see(max(1, contestants - 1), len(scans), exam, ratios)  # raw intensities need no network
        if line := forecast(
            checkpoint.origin.label, patches, seconds_of_a_patch(features_of(encoder, self.device), patch)
        ):
            say(self.console, line)
        if isinstance(network, str):
            notes = [*notes, f"No reconstruction: {network}."]
        if exam is not None and exam.covered < 0.999:
            notes = [*notes, f"The linear probe reaches {exam.covered:.0%} of head or body, from the centre outwards."]
        return self._steps(checkpoint, encoder, network, scans, exam, key, notes), total

    def _steps(
        self,
        checkpoint: Checkpoint,
        encoder: torch.nn.Module,
        network: PretrainingNetwork | str,
        scans: Sequence[ProbeScan],
        exam: Exam | None,
        key: str,
        notes: Sequence[str],
    ) -> Steps:
        seed, patch = self.wishes.seed, patch_of(checkpoint, checkpoint.origin.label)
        filled: Reconstructions | None = None
        if not isinstance(network, str):
            ratios = self.wishes.ratios
            filled = yield from _result_of(reconstructions(network, checkpoint, scans, ratios, seed, self.device))
        patches = [each for n, scan in enumerate(scans) for each in patches_of(scan, patch, (seed, n))]
        extract = features_of(encoder, self.device)
        uses = tuple(use_of_stages(extract, patches))
        yield None
        marks = None if exam is None else (yield from _result_of(examine(exam, extract)))
        if key not in self._untrained:
            self._untrained[key] = yield from self._without_training(checkpoint, patches, exam)
        random_uses, random_marks, raw = self._untrained[key]
        linear = None
        if exam is not None and marks is not None and raw is not None:
            linear = LinearProbe(marks, random_marks, raw, len(exam.tasks), len(exam.folds), exam.covered)
        yield Probed(
            label=checkpoint.origin.label,
            method=checkpoint.origin.method,
            epochs=checkpoint.origin.epochs,
            scans=tuple(scan.name for scan in scans),
            collapse=Collapse(uses, random_uses),
            reconstructions=filled,
            linear=linear,
            notes=tuple(notes),
        )

    def _without_training(self, checkpoint: Checkpoint, patches: Sequence[Patch], exam: Exam | None) -> Any:
        """Use of the stages and marks of untrained networks, and the marks of raw intensities."""
        uses: list[tuple[Use, ...]] = []
        marks: list[Marks] = []
        for number in range(self.wishes.random_networks):
            drawn = random_encoder(checkpoint.architecture, checkpoint.channels, self._seed_of(number))
            extract = features_of(drawn, self.device)
            uses.append(tuple(use_of_stages(extract, patches)))
            yield None
            if exam is not None:
                marks.append((yield from _result_of(examine(exam, extract))))
        raw = None if exam is None else (yield from _result_of(examine(exam, raw_features)))
        yield None
        return tuple(uses), tuple(marks), raw

    def _seed_of(self, number: int) -> int:
        """Of an untrained network: never that of another network of this probe."""
        return self.wishes.seed * 1000 + number

    def _prepared(self, checkpoint: Checkpoint) -> list[ProbeScan]:
        """The scans as for this checkpoint; those for another preprocessing are forgotten."""
        key = short_hash(preprocessing_key(checkpoint))
        if key not in self._scans:
            self._scans.clear()
            prepared = (
                prepared_scan(scan, checkpoint, self.chosen.labels.get(scan.case), scan.subject)
                for scan in self.chosen.scans
            )
            self._scans[key] = list(track(prepared, "Preparing scans", len(self.chosen.scans), self.console))
        return self._scans[key]


def _result_of(steps: Iterator[Result | None]) -> Any:
    """Passes steps on and returns their last."""
    result: Result | None = None
    for step in steps:
        result = step
        yield None
    return result


def _check_out(out: Path | None) -> None:
    """Before an hour of work: can the folder be written to? Leaves nothing behind."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose a folder with -o")
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    with writing_to(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
            trial = out / f".{unique_word()}.tmp"
            trial.touch()
            trial.unlink()
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):  # never made, or somebody else put something into it meanwhile
                    folder.rmdir()


def _write(found: Sequence[Probed], wishes: Wishes, out: Path) -> None:
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        draw_probe(found, out / "probe.png")
        write_json(out / "probe.json", as_document(found, wishes))
