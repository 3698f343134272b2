"""Training steps a second: this package's, and baselines in the manner of others, in turn in one run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

from nnssl_mae.bench.asked import check_report_file, distinct_recipes
from nnssl_mae.bench.ceilings import DTYPES, Work, count_work, measure_ceilings, settled
from nnssl_mae.bench.measuring import Timing, alternately
from nnssl_mae.bench.step_report import print_group, report_of
from nnssl_mae.bench.step_result import Group, StepResult
from nnssl_mae.bench.step_setting import SMALL_PATCH, setting_of, sized
from nnssl_mae.bench.step_variants import Step, Variant, variants_of
from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.inputs import chosen_device
from nnssl_mae.files import write_json
from nnssl_mae.recipes.pretraining import Recipe

_WARM_UP = 3  # steps; a grad scaler skips the first ones, and cuDNN tries its algorithms
_COMPILED_AT_MOST = 256  # forms of the same code; torch goes on without compiling after 8, and only warns


@dataclass(frozen=True)
class StepOptions:
    """What the user asks for; None leaves it to the device."""

    recipes: Sequence[str] = ("mae", "s3d")
    """Names or files."""
    patch: int | None = None
    """Edge in voxels."""
    batches: Sequence[int] = (2,)
    """Patches a step, each timed on its own."""
    formats: Sequence[str] = ()
    """fp32, fp16 or bf16, each timed on its own; none is fp16 on a GPU and fp32 on a CPU."""
    compiled: bool = False
    """Time compiled networks too."""
    device: str | None = None
    """cpu or cuda."""
    repeats: int = 10
    """Timed steps of each variant."""
    features: int | None = None
    """Channels of the first stage."""
    small: bool | None = None
    """Four stages of one block instead of the recipe's network."""
    json: Path | None = None
    """File for all numbers."""


def bench_step(console: Console, options: StepOptions) -> dict[str, Any]:
    """Times all variants in turn, prints tables and ratios, and writes them if a file is asked for.

    Returns:
        what the JSON file holds.

    Raises:
        UserError: an option is not possible, or no variant fits into memory.
    """
    device = chosen_device(options.device)
    formats = _checked_formats(options.formats, device)
    recipes = _sized_recipes(options, device)
    check_report_file(options.json)
    groups = []
    for number_format in formats:
        say(console, f"Measuring what the device can do in {number_format}")
        ceilings = measure_ceilings(device, number_format)
        for batch in options.batches:
            settings = [setting_of(recipe, batch, number_format, device) for recipe in recipes]
            variants = variants_of(settings, options.compiled)
            group = Group(ceilings, time_variants(console, variants, device, options.repeats))
            groups.append(group)
            print_group(console, group)
    report = report_of(groups, device)
    if options.json is not None:
        write_json(options.json, report)
        say(console, f"All numbers are in {options.json}")
    return report


def time_variants(
    console: Console, variants: Sequence[Variant], device: torch.device, repeats: int
) -> list[StepResult]:
    """Builds and warms up every variant, then takes one step of each in turn, ``repeats`` times.

    A variant that does not fit into memory of the GPU or does not compile is told of and left out.

    Raises:
        UserError: none is left.
    """
    _release(device)  # what was timed before
    torch._dynamo.reset()
    # As nnU-Net's training sets them.
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)
    # Variants share code: each must be compiled for its own shapes, whatever those before it had, and none is one too
    # many. Shapes of a variant never change.
    compiler = torch._dynamo.config.patch(automatic_dynamic_shapes=False, cache_size_limit=_COMPILED_AT_MOST)
    with cudnn, compiler:
        prepared, problems = _prepared_all(console, variants, device)
        timings = _timed(console, prepared, problems, device, repeats)
    if not timings:
        raise UserError(f"No variant could be timed ({'; '.join(problems.values())}); use a smaller --batch or --patch")
    results = []
    for variant in variants:
        ready = prepared.get(variant.name)
        work, peak = (None, None) if ready is None else (ready.work, ready.peak)
        results.append(StepResult(variant, timings.get(variant.name), work, peak, problems.get(variant.name)))
    return results


@dataclass(frozen=True)
class _Prepared:
    step: Step
    work: Work
    peak: int | None


def _prepared_all(
    console: Console, variants: Sequence[Variant], device: torch.device
) -> tuple[dict[str, _Prepared], dict[str, str]]:
    """Variants that are ready to be timed, and what is wrong with the others."""
    prepared: dict[str, _Prepared] = {}
    problems: dict[str, str] = {}
    for variant in variants:
        say(console, f"Warming up: {variant.name}")
        try:
            prepared[variant.name] = _prepare(variant, device)
        except torch.cuda.OutOfMemoryError:
            problems[variant.name] = "out of memory"
            say(console, f"{variant.name}: out of memory of the GPU; the others go on")
        except TorchDynamoException as error:
            problems[variant.name] = "not compiled"
            say(console, f"{variant.name}: torch.compile failed ({_first_line(error)}); the others go on")
        _release(device)
    return prepared, problems


def _prepare(variant: Variant, device: torch.device) -> _Prepared:
    """Builds a variant, counts its work, and takes it to where its steps are all alike."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    step = variant.build()
    work = count_work(step, step.parameters())
    if variant.compiled:
        step.compile()
    for _ in range(_WARM_UP):
        step()
    if device.type != "cuda":
        return _Prepared(step, work, None)
    settled(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    settled(device)
    # Variants that were built before lie beside it; what they hold is not its own.
    return _Prepared(step, work, torch.cuda.max_memory_allocated(device) - before)


def _timed(
    console: Console, prepared: dict[str, _Prepared], problems: dict[str, str], device: torch.device, repeats: int
) -> dict[str, Timing]:
    """Timings by name; a variant that runs out of memory now is added to ``problems``."""

    def lost(name: str, _: Exception) -> None:
        problems[name] = "out of memory"
        say(console, f"{name}: out of memory of the GPU; the others go on")

    say(console, f"Timing {repeats} rounds of {len(prepared)} variants, one step of each in turn")
    works: dict[str, Callable[[], object]] = {name: ready.step for name, ready in prepared.items()}
    with console.status("") as status:
        return alternately(
            works,
            repeats,
            warm_up=False,
            settle=lambda: settled(device),
            announce=lambda number, name: status.update(f"Round {number} of {repeats}: {name}"),
            survivable=(torch.cuda.OutOfMemoryError,),
            lost=lost,
        )


def _release(device: torch.device) -> None:
    """Gives memory of the GPU back that nobody holds any more, so that the next variant can have it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _checked_formats(formats: Sequence[str], device: torch.device) -> Sequence[str]:
    for name in formats:
        if name not in DTYPES:
            raise UserError(f"--amp {name} is not possible; use fp32, fp16 or bf16")
        if name != "fp32" and device.type == "cpu":
            raise UserError(f"--amp {name} is not possible on a CPU, where training is always in fp32; use --amp fp32")
    return tuple(dict.fromkeys(formats)) or (("fp16",) if device.type == "cuda" else ("fp32",))


def _sized_recipes(options: StepOptions, device: torch.device) -> list[Recipe]:
    """The recipes in the sizes of this run; by default small on a CPU."""
    small = device.type == "cpu" if options.small is None else options.small
    patch = SMALL_PATCH if options.patch is None and small else options.patch
    return [sized(recipe, patch, options.features, small) for recipe in distinct_recipes(options.recipes)]
