"""``scan`` and its verbs: from folders to a catalogue, its report and its rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

from nnssl_mae.cli.app import Workers, app
from nnssl_mae.console import say
from nnssl_mae.errors import UserError

_DEFAULT = "folders"


class _FoldersByDefault(TyperGroup):
    """``scan ROOT...`` means ``scan folders ROOT...``; a folder of the name of a verb is written ``./report``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


scan_app = typer.Typer(
    cls=_FoldersByDefault, no_args_is_help=True, context_settings=app.info.context_settings, rich_markup_mode=None
)
app.add_typer(
    scan_app,
    name="scan",
    help="Find and check scans on disk: `nnssl-mae scan ROOT... -o CATALOGUE` writes a table with a verdict for each.",
)

Catalogue = Annotated[Path, typer.Argument(help="Folder that `nnssl-mae scan ROOT... -o` wrote.")]
SubjectRegex = Annotated[str | None, typer.Option(help="Expression whose first group in the path is the subject.")]
ExcludeSuffix = Annotated[
    str,
    typer.Option(
        "--exclude-suffix", "--defacing-masks", help="Ending of the names of masks of defaced regions beside the scans."
    ),
]
Split4D = Annotated[str | None, typer.Option("--split-4d", help="Use volumes of 4D images: mean, first or all.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="Switch a check off: spacing, thick_slices, field_of_view, localiser, derived_map, segmentation, "
        "duplicate, duplicate_subject. Repeatable."
    ),
]


@scan_app.command(_DEFAULT)
def folders(
    roots: Annotated[list[Path], typer.Argument(help="Folders to search, at any depth, or single files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the catalogue; made, continued or updated.")],
    min_fov: Annotated[float, typer.Option(help="Shortest edge of the field of view that is accepted, mm.")] = 50.0,
    max_spacing: Annotated[float, typer.Option(help="Thickest slices that are accepted, mm.")] = 6.5,
    min_slices: Annotated[int, typer.Option(help="Fewest voxels along any axis that are accepted.")] = 8,
    allow: Allow = None,
    split_4d: Split4D = None,
    subject_regex: SubjectRegex = None,
    exclude_suffix: ExcludeSuffix = "_exclude",
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not read voxels: seconds, but most checks are left out.")
    ] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read files again even if their size and time have not changed.")
    ] = False,
    workers: Workers = 4,
) -> None:
    """Search folders for scans and check each: NIfTI, NRRD, MetaImage, DICOM series. `folders` need not be written."""
    from nnssl_mae.catalogue.checks import Limits
    from nnssl_mae.catalogue.scan import scan_folders

    limits = Limits(min_fov=min_fov, max_spacing=max_spacing, min_slices=min_slices, allow=tuple(allow or ()))
    console = Console()
    scan_folders(
        roots,
        out,
        limits,
        console,
        workers=workers,
        subject_regex=subject_regex,
        exclude_suffix=exclude_suffix,
        split_4d=split_4d,
        headers_only=headers_only,
        rehash=rehash,
    )
    say(console, "Next, look at it, leave out what you do not want, and prepare it:")
    say(console, f"  nnssl-mae scan report {out}")
    say(console, f"  nnssl-mae scan include {out} --where \"modality == 'T1w'\"")
    say(console, f"  nnssl-mae prepare {out} -d 900 -n Brains")


@scan_app.command()
def report(
    catalogue: Catalogue,
    sample: Annotated[int, typer.Option(help="How many accepted scans to show.", min=0)] = 48,
    seed: Annotated[int, typer.Option(help="Decides which ones.", min=0)] = 0,
) -> None:
    """Write scan.html: counts, reasons, distributions, and pictures of a sample and of every outlier."""
    from nnssl_mae.catalogue.report.write import write_report

    write_report(_folder(catalogue), Console(), sample, seed)


Where = Annotated[str, typer.Option(help="For instance: \"modality == 'T1w' and min_spacing < 3\"")]


@scan_app.command()
def include(catalogue: Catalogue, where: Where) -> None:
    """Accept only scans for which this holds (or another include rule)."""
    _add_rule(catalogue, "include", where)


@scan_app.command()
def exclude(catalogue: Catalogue, where: Where) -> None:
    """Leave out scans for which this holds."""
    _add_rule(catalogue, "exclude", where)


@scan_app.command()
def rules(
    catalogue: Catalogue,
    remove: Annotated[str | None, typer.Option(help="Number of the rule to remove, or 'all'.")] = None,
) -> None:
    """Show the rules of a catalogue, or remove some."""
    from nnssl_mae.catalogue.rules import print_rules, remove_rules
    from nnssl_mae.catalogue.table import read_catalogue

    folder = _folder(catalogue)
    before = None
    if remove is not None:
        if remove != "all" and not (remove.isascii() and remove.isdecimal()):
            raise UserError(f"--remove {remove} is not possible; give the number of a rule, or 'all'")
        before = read_catalogue(folder)
        remove_rules(folder, None if remove == "all" else int(remove))
    print_rules(read_catalogue(folder), Console(), before)


def _add_rule(catalogue: Path, kind: str, where: str) -> None:
    from nnssl_mae.catalogue.rules import add_rule, print_rules
    from nnssl_mae.catalogue.table import read_catalogue

    folder = _folder(catalogue)
    before = read_catalogue(folder)
    print_rules(add_rule(folder, kind, where), Console(), before)


def _folder(catalogue: Path) -> Path:
    """The folder of a catalogue, also where its table was given."""
    return catalogue.parent if catalogue.is_file() else catalogue
