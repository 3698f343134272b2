"""Timed training steps as tables, sentences and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch
from rich.console import Console

from nnssl_mae.bench.ceilings import Ceilings
from nnssl_mae.bench.measuring import environment, print_table, processor, versions
from nnssl_mae.bench.step_result import Group, Ratio, StepResult, ratios_of
from nnssl_mae.bench.step_setting import StepSetting
from nnssl_mae.plans import describe_topology
from nnssl_mae.sizes import sizes_in_words

SCHEMA = 1
_GIB = 2**30


def print_group(console: Console, group: Group) -> None:
    """Two tables, times and work, and the ratios in words."""
    setting = group.results[0].variant.setting
    networks = list(_networks(group))
    words = networks[0] if len(networks) == 1 else f"{len(networks)} networks, see below"
    title = f"One training step, batch {setting.batch}, {setting.number_format}; {words}"
    columns: tuple[str, ...] = ("step", "ms", "from", "to", "middle half", "CPU ms", "Mvoxel/s", "peak GiB")
    print_table(console, title, columns, [_time_row(result) for result in group.results], _notes(group))
    columns = ("step", "GFLOP", "of ceiling", "floor ms", "GiB moved*", "of ceiling*", "floor ms*")
    rows = [_work_row(result, group.ceilings) for result in group.results]
    print_table(console, "What a step asks of the device", columns, rows, _ceilings_in_words(group.ceilings, setting))
    sentences = [ratio_in_words(ratio) for ratio in ratios_of(group.results)]
    note = "\n".join([*sentences, _device_in_words(setting.device), environment()])
    console.print(f"\n{note}\n", markup=False, highlight=False, soft_wrap=True)


def network_in_words(setting: StepSetting) -> str:
    """Kind, patch, stages, blocks and channels of the network that is timed."""
    kwargs = setting.architecture["arch_kwargs"]
    depth = kwargs.get("n_blocks_per_stage", kwargs.get("n_conv_per_stage"))
    kind = setting.architecture["network_class_name"].rpartition(".")[2]
    return f"{kind}, {describe_topology(setting.configuration)}, blocks a stage {'-'.join(map(str, depth))}"


def ratio_in_words(ratio: Ratio) -> str:
    """One sentence."""
    low, high = ratio.quartiles
    caveat = f"; not the same work: {ratio.of.difference}" if ratio.of.difference else ""
    return (
        f"{ratio.of.name} is {ratio.value:.2f} times as fast as {ratio.to} "
        f"({low:.2f} to {high:.2f} in the middle half of the rounds){caveat}."
    )


def report_of(groups: Sequence[Group], device: torch.device) -> dict[str, Any]:
    """Everything that was measured, for JSON; times in seconds, sizes in bytes."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": versions() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()},
        "groups": [_group_report(group) for group in groups],
    }


def _group_report(group: Group) -> dict[str, Any]:
    setting = group.results[0].variant.setting
    return {
        "batch": setting.batch,
        "amp": setting.number_format,
        "matmul_flops_per_second": group.ceilings.matmul,
        "copy_bytes_per_second": group.ceilings.copy,
        "variants": [_result_report(result, group.ceilings) for result in group.results],
        "ratios": [
            {"of": ratio.of.name, "to": ratio.to, "speed": ratio.value, "quartiles": list(ratio.quartiles)}
            | ({"not_the_same_work": ratio.of.difference} if ratio.of.difference else {})
            for ratio in ratios_of(group.results)
        ],
    }


def _result_report(result: StepResult, ceilings: Ceilings) -> dict[str, Any]:
    variant, setting = result.variant, result.variant.setting
    return {
        "name": variant.name,
        "kind": variant.kind,
        "recipe": setting.recipe.name,
        "compiled": variant.compiled,
        "network": network_in_words(setting),
        "mask_grid": list(setting.grid),
        "hidden_ratio": setting.ratio,
        "problem": result.problem,
        "voxels_per_second": result.voxels_per_second,
        "peak_bytes": result.peak,
        **_times_report(result),
        **_work_report(result, ceilings),
    }


def _times_report(result: StepResult) -> dict[str, Any]:
    timing = result.timing
    if timing is None:
        return {}
    return {
        "median": timing.median,
        "smallest": min(timing.wall),
        "largest": max(timing.wall),
        "quartiles": list(timing.quartiles),
        "wall": list(timing.wall),
        "cpu": list(timing.cpu),
    }


def _work_report(result: StepResult, ceilings: Ceilings) -> dict[str, Any]:
    work, timing = result.work, result.timing
    if work is None:
        return {}
    flop_floor, byte_floor = work.flop_floor(ceilings), work.byte_floor(ceilings)
    return {
        "flops": work.flops,
        "estimated_moved_bytes": work.moved_bytes,
        "flop_floor": flop_floor,
        "estimated_byte_floor": byte_floor,
        "share_of_matmul_ceiling": None if timing is None else flop_floor / timing.median,
        "estimated_share_of_copy_ceiling": None if timing is None else byte_floor / timing.median,
    }


def _time_row(result: StepResult) -> tuple[str, ...]:
    timing, speed = result.timing, result.voxels_per_second
    peak = "-" if result.peak is None else f"{result.peak / _GIB:.2f}"
    if timing is None or speed is None:
        return result.variant.name, result.problem or "-", *"-----", peak
    middle = " to ".join(_milliseconds(time) for time in timing.quartiles)
    spread = (_milliseconds(time) for time in (timing.median, min(timing.wall), max(timing.wall)))
    return result.variant.name, *spread, middle, _milliseconds(timing.cpu_median), f"{speed / 1e6:.2f}", peak


def _work_row(result: StepResult, ceilings: Ceilings) -> tuple[str, ...]:
    work, timing = result.work, result.timing
    if work is None:
        return result.variant.name, *"------"
    floors = work.flop_floor(ceilings), work.byte_floor(ceilings)
    shares = ["-" if timing is None else f"{100 * floor / timing.median:.0f} %" for floor in floors]
    numbers = f"{work.flops / 1e9:.1f}", f"{work.moved_bytes / _GIB:.2f}"
    first, second = (
        (number, share, _milliseconds(floor)) for number, share, floor in zip(numbers, shares, floors, strict=True)
    )
    return result.variant.name, *first, *second


def _milliseconds(time: float) -> str:
    return f"{1000 * time:.1f}"


def _networks(group: Group) -> dict[str, list[str]]:
    """Names of the recipes that have each network."""
    found: dict[str, list[str]] = {}
    for setting in _settings(group).values():
        found.setdefault(network_in_words(setting), []).append(setting.recipe.name)
    return found


def _settings(group: Group) -> dict[str, StepSetting]:
    """One of each recipe, by its name."""
    return {result.variant.setting.recipe.name: result.variant.setting for result in group.results}


def _notes(group: Group) -> str:
    """Networks, where there are several, and masks."""
    networks = _networks(group)
    lines = [f"{', '.join(names)}: {words}." for words, names in networks.items()] if len(networks) > 1 else []
    masks = [
        f"{name}: {sizes_in_words(setting.grid)} blocks, {setting.ratio:.0%} hidden"
        for name, setting in _settings(group).items()
    ]
    lines.append(f"Masks: {'; '.join(masks)}. Times are of the clock on the wall, with a wait for the device.\n")
    return "\n".join(lines)


def _ceilings_in_words(ceilings: Ceilings, setting: StepSetting) -> str:
    form = setting.number_format
    if form == "fp32" and setting.device.type == "cuda":
        form = "fp32 (TF32, as convolutions)"
    return (
        f"Ceilings measured in this run: {ceilings.matmul / 1e12:.3g} TFLOP/s of a large matrix product in {form}, "
        f"{ceilings.copy / 1e9:.3g} GB/s of a large copy. A floor is what a step would take at a ceiling.\n"
        "* An estimate: activations kept for the backward pass, written once and read once."
    )


def _device_in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
