"""The page of ``nnssl-mae inspect``, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nnssl_mae.backbones import short_name, strides_that_shrink
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.transfer import Group, Ignored, Report, What
from nnssl_mae.console import say
from nnssl_mae.downstream.inspection import Inspection, ModeSummary, orientation
from nnssl_mae.downstream.labelled import Labelled
from nnssl_mae.downstream.plan import Planned
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.sizes import sizes_in_words, stages_in_words

_UNKNOWN = "not known"
_NOT_KEPT_OUT = "no labelled dataset, as far as the file says"
_SHOWN_IGNORED = 2


def print_json(found: Inspection) -> None:
    """For programs, on standard output."""
    print(json.dumps(_without_nan(found.as_json()), indent=2, default=str, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """Numbers that JSON does not know as null, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_page(found: Inspection, console: Console) -> None:
    """For people: the checkpoint, and with a dataset what would be transferred, dangers, and the next command."""
    checkpoint = found.checkpoint
    say(console, checkpoint.origin.label, style="bold")
    console.print(_facts(_of_checkpoint(found)))
    _print_sentences(console, "Note", checkpoint.notes, None)
    if found.labelled is None or found.planned is None or found.wish is None:
        say(console, "With -d NUMBER: what a labelled nnU-Net dataset would get of it.")
        return
    planned, labelled = found.planned, found.labelled
    say(console, f"\nFine-tuning {labelled.name}", style="bold")
    console.print(_facts(_of_plan(planned, labelled)))
    if planned.report is not None:
        console.print(_groups(planned.report.groups()))
        _print_hows(console, planned.report)
        _print_ignored(console, planned.report.ignored)
    console.print(_modes(found.modes, found.wish))
    for refused in (mode for mode in found.modes if mode.refused):
        say(console, f"Not possible with --mode {refused.mode}: {refused.refused}")
    _print_sentences(console, "Note", planned.notes, None)
    warnings = [each for each in planned.warnings if each not in checkpoint.notes]
    _print_sentences(console, "Warning", [*warnings, *planned.beyond_stock], "yellow")
    say(console, f"To write these plans: nnssl-mae adapt with the same checkpoint and options and -d {labelled.number}")


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _of_checkpoint(found: Inspection) -> list[tuple[str, str]]:
    checkpoint, origin = found.checkpoint, found.checkpoint.origin
    length = [] if origin.epochs is None else [f"{origin.epochs:,} epochs"]
    length += [] if origin.steps is None else [f"{origin.steps:,} steps"]
    return [
        ("format", {"weights": "bare weights"}.get(origin.format, origin.format)),
        ("method", origin.method or _UNKNOWN),
        ("trained for", ", ".join(length) or _UNKNOWN),
        ("network", _network(checkpoint)),
        ("weights", f"{_millions(found.weights)}, of these {_millions(found.encoder_weights)} in the encoder"),
        ("input", _input(checkpoint)),
        ("orientation", orientation(checkpoint)),
        ("reconstruction", "nnssl-mae preview shows it" if checkpoint.reconstruction else _cannot(checkpoint)),
        (
            "kept out",
            _NOT_KEPT_OUT if not origin.excluded_datasets else f"scans of {', '.join(origin.excluded_datasets)}",
        ),
        ("licence", origin.licence or "not stated"),
        ("to cite", "; ".join(origin.citations) or "not stated"),
        ("SHA-256", origin.sha256),
    ]


def _cannot(checkpoint: Checkpoint) -> str:
    return f"not possible: {checkpoint.cannot_reconstruct}" if checkpoint.cannot_reconstruct else "not possible"


def _network(checkpoint: Checkpoint) -> str:
    kwargs: Mapping[str, Any] = checkpoint.architecture["arch_kwargs"]
    name = short_name(checkpoint.architecture["network_class_name"])
    strides = kwargs.get("strides")
    steps = "strides not known" if not strides else "strides " + " ".join(map(_cube, strides_that_shrink(strides)))
    stages = stages_in_words(kwargs["n_stages"])
    return f"{name}, {stages} of {'-'.join(map(str, kwargs['features_per_stage']))} features, {steps}"


def _cube(value: Any) -> str:
    """``2`` or ``1x2x2``."""
    edges = list(value) if isinstance(value, list | tuple) else [value] * 3
    return str(edges[0]) if len(set(edges)) == 1 else sizes_in_words(edges)


def _input(checkpoint: Checkpoint) -> str:
    channels = f"{checkpoint.channels} channel{'s' if checkpoint.channels > 1 else ''}"
    if not checkpoint.is_preprocessing_known:
        return f"{channels}; spacing, normalisation and patch are not known"
    data = checkpoint.data
    resampled = data["resampling_fn_data"] != "no_resampling_hack"
    spacing = f"voxels of {_mm(data['spacing'])}" if resampled else "voxels of any size (not resampled)"
    return (
        f"{channels}, patch {sizes_in_words(data['patch_size'])}, {spacing}, {', '.join(data['normalization_schemes'])}"
    )


def _of_plan(planned: Planned, labelled: Labelled) -> list[tuple[str, str]]:
    configuration = planned.configuration
    schemes = zip(labelled.channel_names, configuration["normalization_schemes"], strict=True)
    kwargs = configuration["architecture"]["arch_kwargs"]
    strides = " ".join(map(_cube, strides_that_shrink(kwargs["strides"])))
    memory = _UNKNOWN if planned.gpu_memory is None else f"{planned.gpu_memory:.1f} GB"
    return [
        ("channels", ", ".join(f"{name}: {scheme}" for name, scheme in schemes)),
        ("voxels", _mm(configuration["spacing"])),
        ("patch", f"{sizes_in_words(configuration['patch_size'])}, batch {configuration['batch_size']}"),
        ("network", f"{stages_in_words(kwargs['n_stages'])}, strides {strides}"),
        ("reader", f"{planned.plans['image_reader_writer']}, axes {_order(planned.plans['transpose_forward'])}"),
        ("GPU memory", f"{memory} ({planned.gpu_memory_how})"),
    ]


def _groups(groups: Sequence[Group]) -> Table:
    table = Table(title="Tensors of the new network", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    for column in ("loaded", "adapted", "random", "weights"):
        table.add_column(column, justify="right", no_wrap=True)
    kinds: tuple[What, ...] = ("loaded", "adapted", "random")
    for group in groups:
        counts = [str(group.tensors.get(kind, 0) or "-") for kind in kinds]
        table.add_row(group.name, *counts, f"{sum(group.weights.values()):,}")
    totals = [str(sum(group.tensors.get(kind, 0) for group in groups) or "-") for kind in kinds]
    table.add_section()
    table.add_row("all", *totals, f"{sum(sum(group.weights.values()) for group in groups):,}")
    return table


def _print_hows(console: Console, report: Report) -> None:
    """What was adapted, and why tensors stay random: each reason once, with the parts that it concerns."""
    for kind, fates in (("Adapted", report.adapted), ("Random", report.random)):
        reasons: dict[str, list[str]] = {}
        for fate in fates:
            reasons.setdefault(fate.how, []).append(fate.name)
        for how, names in reasons.items():
            shown = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            say(console, f"{kind}: {shown}: {how}")


def _print_ignored(console: Console, ignored: Sequence[Ignored]) -> None:
    if not ignored:
        return
    by_reason: dict[str, list[str]] = {}
    for tensor in ignored:
        by_reason.setdefault(tensor.why, []).append(tensor.name)
    say(console, f"Of the checkpoint, {len(ignored)} tensors are not used:")
    for why, names in by_reason.items():
        more = f" and {len(names) - _SHOWN_IGNORED} more" if len(names) > _SHOWN_IGNORED else ""
        say(console, f"  {', '.join(names[:_SHOWN_IGNORED])}{more}: {why}")


def _modes(modes: Sequence[ModeSummary], wish: Wish) -> Table:
    table = Table(
        title="The modes: GPU memory, share of the part to transfer that is taken",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("--mode", no_wrap=True)
    for column in ("voxels", "patch", "memory", "taken", "warnings"):
        table.add_column(column, justify="right", overflow="fold")
    for mode in modes:
        name = f"{mode.mode} *" if mode.mode == wish.mode else mode.mode
        if mode.refused:
            table.add_row(name, *["-"] * 5)
            continue
        memory = _UNKNOWN if mode.gpu_memory is None else f"{mode.gpu_memory:.1f} GB"
        taken = "-" if wish.part is None else f"{mode.from_checkpoint:.1%}"
        table.add_row(name, _mm(mode.spacing), sizes_in_words(mode.patch), memory, taken, str(mode.warnings))
    return table


def _print_sentences(console: Console, kind: str, sentences: Sequence[str], style: str | None) -> None:
    for sentence in sentences:
        say(console, f"{kind}: {sentence}", style=style)


def _mm(spacing: Sequence[float]) -> str:
    return "x".join(f"{edge:.3g}" for edge in spacing) + " mm"


def _order(axes: Sequence[int]) -> str:
    return "as read" if list(axes) == [0, 1, 2] else "in the order " + " ".join(map(str, axes))


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"
