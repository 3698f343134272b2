"""``prepare``: from a catalogue, or folders of scans, to a dataset for pre-training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nnssl_mae.cli.app import Dataset, Workers, app
from nnssl_mae.cli.scanning import Allow, ExcludeSuffix, Split4D, SubjectRegex
from nnssl_mae.console import say
from nnssl_mae.errors import UserError


def _spacing(values: list[str]) -> Any:
    if len(values) == 1 and values[0] in ("native", "median"):
        return values[0]
    return _three(values, float, "--spacing", "three numbers in mm (z y x), 'native' or 'median'")


def _patch(values: list[str]) -> Any:
    if values == ["planner"]:
        return "planner"
    return _three(values, int, "--patch", "three whole numbers of voxels (z y x) or 'planner'")


def _three(values: list[str], kind: Any, option: str, expected: str) -> Any:
    try:
        numbers = tuple(kind(value) for value in values)
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise UserError(f"{option} {' '.join(values)} is not possible; give {expected}")
    return numbers


_PLANNED = (
    "batch_size", "base_features", "max_features", "blocks_per_stage", "convs_per_decoder_stage", "max_stages",
)  # fmt: skip


def _orientation(word: str) -> str:
    words = {"ras": "RAS", "asis": "as_stored", "as_stored": "as_stored"}
    if word.lower() not in words:
        raise UserError(f"--orientation {word} is not possible; use RAS or asis")
    return words[word.lower()]


def _clip(text: str | None) -> dict[str, tuple[str, Any]]:
    """The recipe's keys for ``--clip-percentiles``, one number being the high one."""
    if text is None:
        return {}
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise UserError(
            f"--clip-percentiles {text} is not possible; give low and high, such as 0.5 99.5, or the high one"
        )
    high = {"data.clip_percentile": ("--clip-percentiles", numbers[-1])}
    return high if len(numbers) == 1 else {**high, "data.clip_low_percentile": ("--clip-percentiles", numbers[0])}


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match is None:
        raise UserError(f"--shard {text} is not possible; give part and number of parts, such as 3/64")
    return int(match[1]), int(match[2])


def _changes(published: Any, texts: list[str], short: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The user's changes of a recipe, dotted key by value.

    Args:
        published: the recipe.
        texts: of ``--set``.
        short: options that are short for a key, with their values (None = not given).
    """
    from nnssl_mae.recipes.pretraining import Recipe
    from nnssl_mae.recipes.reading import assignments

    changes = assignments(texts, Recipe)
    for key, (option, value) in short.items():
        if value is None:
            continue
        if key in changes:
            raise UserError(f"{option} and --set {key} decide the same value; leave one out")
        changes[key] = value
    is_planned = changes.get("network.patch_size", published.network.patch_size) == "planner"
    planned = [f"network.{key}" for key in _PLANNED if f"network.{key}" in changes]
    if is_planned and planned:
        has_batch = short.get("network.batch_size", ("", None))[1] is not None
        option = "--batch" if has_batch else f"--set {planned[0]}"
        raise UserError(f"{option} cannot be used with a planner patch: nnU-Net's plan decides both; leave one out")
    return changes


@app.command()
def prepare(
    scans: Annotated[list[Path], typer.Argument(help="A catalogue of `nnssl-mae scan`, or folders of scans.")],
    dataset: Dataset,
    name: Annotated[str, typer.Option("-n", "--name", help="Name of the new dataset.")],
    recipe: Annotated[str, typer.Option(help="Shipped recipe, or a YAML file.")] = "mae",
    backbone: Annotated[
        str | None,
        typer.Option(help="Train the network of this recipe (nnformer, primus_m, ...) by the method of --recipe."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one value of the recipe: masking.ratio=0.6. Repeatable.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="'1 1 1' (mm, z y x), 'native' (no resampling) or 'median'.")
    ] = None,
    patch: Annotated[str | None, typer.Option(help="'160 160 160' (voxels) or 'planner'.")] = None,
    batch: Annotated[int | None, typer.Option(help="Patches a step, over all GPUs.")] = None,
    orientation: Annotated[str | None, typer.Option(help="RAS, or asis to keep axes as stored.")] = None,
    crop: Annotated[
        str | None, typer.Option(help="nonzero, or foreground (head or body; beyond stock nnU-Net).")
    ] = None,
    clip_percentiles: Annotated[
        str | None, typer.Option(help="Low and high, such as '0.5 99.5', or the high one (beyond stock nnU-Net).")
    ] = None,
    exclude_dataset: Annotated[
        list[int] | None,
        typer.Option(help="Leave out scans that labelled dataset N holds too, training or test. Repeatable."),
    ] = None,
    match_subjects: Annotated[
        bool, typer.Option(help="With --exclude-dataset: leave out subjects of the same name too.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try a few scans and tell expected disk, time and memory.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="'3/64': do one part of 64; the last one puts all together.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit code 1 if a scan that should be used could not be: one that the catalogue accepts; of folders, "
            "any that a check rejects. Rules and --exclude-dataset do not count.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away an unfinished preparation of this dataset.")
    ] = False,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB for all processes together; default 80 % of what is free.", min=0.1)
    ] = None,
    allow: Allow = None,
    split_4d: Split4D = None,
    subject_regex: SubjectRegex = None,
    exclude_suffix: ExcludeSuffix = "_exclude",
    workers: Workers = 4,
) -> None:
    """Prepare unlabelled scans for pre-training: plan, preprocess, store. The same command goes on where it stopped.

    On a finished dataset it does what is new or changed and takes out what is gone.

    Exit codes: 0 done, 1 --strict, 2 bad input, 75 no space or memory (the same command goes on), 130 Ctrl-C.
    """
    from nnssl_mae.recipes.backbone import changed_recipe
    from nnssl_mae.recipes.reading import load_recipe
    from nnssl_mae.scans.request import Request

    published = load_recipe(recipe)
    short = {
        "data.spacing": ("--spacing", None if spacing is None else _spacing(spacing.split())),
        "network.patch_size": ("--patch", None if patch is None else _patch(patch.split())),
        "network.batch_size": ("--batch", batch),
        "data.orientation": ("--orientation", None if orientation is None else _orientation(orientation)),
        "data.crop": ("--crop", crop),
        **_clip(clip_percentiles),
    }
    request = Request(
        dataset,
        name,
        changed_recipe(published, backbone, _changes(published, changes or [], short)),
        published,
        workers=workers,
        shard=None if shard is None else _shard(shard),
        max_memory=None if max_memory is None else int(max_memory * 2**30),
        restart=restart,
        exclude_datasets=tuple(exclude_dataset or ()),
        selection=(subject_regex or "", "" if match_subjects else "voxels only") if exclude_dataset else (),
    )
    source = _Source(scans, split_4d, subject_regex, exclude_suffix, tuple(allow or ()))
    more = _leakage(exclude_dataset or [], workers, subject_regex, match_subjects)
    if more is None and subject_regex is not None and source.is_catalogue():
        raise UserError("--subject-regex belongs to `nnssl-mae scan`: the subjects of a catalogue are found there")
    if dry_run:
        _estimate(source, request, more)
        return
    _prepare(source, request, more, strict)


@dataclass(frozen=True)
class _Source:
    """What to prepare, and the options that only folders of scans take."""

    paths: list[Path]
    split_4d: str | None
    subject_regex: str | None
    exclude_suffix: str
    allow: tuple[str, ...]

    def is_catalogue(self) -> bool:
        """Whether one was given."""
        from nnssl_mae.catalogue.table import is_catalogue

        return any(is_catalogue(path) for path in self.paths)

    def catalogue(self) -> Any | None:
        """The catalogue, if that is what was given."""
        from nnssl_mae.catalogue.table import read_catalogue

        if not self.is_catalogue():
            return None
        if len(self.paths) > 1:
            raise UserError("Give one catalogue, or folders of scans; to join catalogues, scan all folders into one")
        if self.split_4d is not None or self.allow or self.exclude_suffix != "_exclude":
            raise UserError(
                "--split-4d, --allow and --exclude-suffix belong to `nnssl-mae scan`: the verdicts of a catalogue are "
                "made there"
            )
        return read_catalogue(self.paths[0])

    def scanning(self) -> dict[str, Any]:
        """Options of :func:`nnssl_mae.catalogue.scan.scan_folders`."""
        return {
            "split_4d": self.split_4d,
            "subject_regex": self.subject_regex,
            "exclude_suffix": self.exclude_suffix,
        }


def _prepare(source: _Source, request: Any, more: Any, strict: bool) -> None:
    from nnssl_mae.catalogue.checks import Limits
    from nnssl_mae.plans import CONFIGURATION, PRETRAINING_PLANS
    from nnssl_mae.scans.prepare import prepare as run
    from nnssl_mae.scans.prepare import prepare_folders

    console = Console()
    if words := _beyond_stock(request.recipe):
        say(
            console,
            f"Beyond stock nnU-Net: {words}. It cannot repeat that when it fine-tunes and predicts.",
            style="yellow",
        )
    catalogue = source.catalogue()
    if catalogue is not None:
        done = run(catalogue, request, console, more)
    else:
        limits = Limits(allow=source.allow)
        done = prepare_folders(source.paths, request, console, limits, more, **source.scanning())
    if done.folder is not None:
        say(console, f"Prepared {done.folder}")
        say(console, "Next, pre-train (add -device cpu without a GPU):")
        say(
            console,
            f"  nnUNetv2_train {request.number} {CONFIGURATION} all -tr nnUNetTrainerMAE -p {PRETRAINING_PLANS}",
        )
    if strict and done.failed:
        raise typer.Exit(1)


def _estimate(source: _Source, request: Any, more: Any) -> None:
    import tempfile

    from nnssl_mae.catalogue.checks import Limits
    from nnssl_mae.catalogue.scan import scan_folders
    from nnssl_mae.scans.estimate import estimate

    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        catalogue = source.catalogue()
        if catalogue is None:
            catalogue = scan_folders(
                source.paths,
                Path(temporary),
                Limits(allow=source.allow),
                console,
                workers=request.workers,
                headers_only=more is None,
                **source.scanning(),
            )
        estimate(catalogue, request, console, more)


def _leakage(numbers: list[int], workers: int, subject_regex: str | None, match_subjects: bool) -> Any | None:
    """Looks for scans of labelled datasets; none where that was not asked for."""
    if not numbers:
        return None
    from nnssl_mae.folders import find_dataset
    from nnssl_mae.scans.leakage import labelled_images, left_out_for

    for number in numbers:  # before hours of scanning
        labelled_images(find_dataset(number))
    return partial(
        left_out_for,
        numbers=numbers,
        console=Console(),
        workers=workers,
        subject_regex=subject_regex,
        match_subjects=match_subjects,
    )


def _beyond_stock(recipe: Any) -> str:
    from nnssl_mae.scans.preprocess import BeyondStock

    return ", ".join(BeyondStock.of(recipe.data).words)
