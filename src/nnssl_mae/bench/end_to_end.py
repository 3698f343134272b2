"""Training with its loader against the step alone: whether the device ever waits for patches."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from nnssl_mae.bench.ceilings import settled
from nnssl_mae.bench.measuring import alternately, environment, print_table
from nnssl_mae.bench.own_step import OwnStep
from nnssl_mae.bench.step_setting import StepSetting, setting_of, sized
from nnssl_mae.bench.volumes import patch_settings, write_volumes
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.inputs import chosen_device
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import BatchStream, TrainingBatches, training_stream
from nnssl_mae.recipes.reading import load_recipe

_WARM_UP = 4
_SMALL_PATCH = 48


@dataclass(frozen=True)
class Share:
    """Seconds of a step, in rounds that took turns."""

    alone: tuple[float, ...]
    """With batches that lie in memory."""
    together: tuple[float, ...]
    """With batches from loader processes."""

    @property
    def ratio(self) -> float:
        """How many times longer a step takes with the loader; 1 is no wait at all."""
        return statistics.median(self.together) / statistics.median(self.alone)


def bench_end_to_end(
    console: Console,
    recipe_name: str = "mae",
    patch: int | None = None,
    batch: int = 2,
    workers: int = 4,
    device: str | None = None,
    rounds: int = 5,
    steps: int = 10,
    resolution: int = 1,
) -> Share:
    """Measures steps with and without loading, in turns, and prints how much longer the first take.

    Args:
        console: to print on.
        recipe_name: a name or file.
        patch: edge in voxels; none is the recipe's, on a CPU a small one with a small network.
        batch: patches a step.
        workers: loader processes; 0 loads between steps.
        device: cpu or cuda; none is the GPU if there is one.
        rounds: of each.
        steps: a round.
        resolution: of the volumes, mm.

    Raises:
        UserError: an option is not possible, or nilearn, which brings the volumes, is not installed.
    """
    if workers < 0:
        raise UserError(f"--workers {workers} is not possible; use 0 or more")
    where = chosen_device(device)
    setting = _setting(recipe_name, patch, batch, where)
    with tempfile.TemporaryDirectory() as temporary:
        write_volumes(None, Path(temporary), setting.patch, resolution)
        stream = _stream(setting, Path(temporary), workers, rounds * steps + _WARM_UP)
        try:
            share = _measured(setting, stream, rounds, steps)
        finally:
            stream.close()
    _print(console, share, setting, workers)
    return share


def _setting(recipe_name: str, patch: int | None, batch: int, device: torch.device) -> StepSetting:
    recipe, small = load_recipe(recipe_name), device.type == "cpu"
    edge = patch or (_SMALL_PATCH if small else None)
    number_format = "fp32" if small else recipe.optimiser.precision
    return setting_of(sized(recipe, edge, None, small), batch, number_format, device)


def _stream(setting: StepSetting, folder: Path, workers: int, steps: int) -> BatchStream:
    recipe = setting.recipe
    on_gpu = setting.device.type == "cuda" and recipe.augmentation.device != "cpu"
    settings = patch_settings(setting.patch, recipe.masking)
    batches = TrainingBatches(CaseIndex(folder), settings, recipe.augmentation, setting.batch, on_device=on_gpu)
    return training_stream(batches, 0, 1, steps, workers, pin_memory=setting.device.type == "cuda")


def _measured(setting: StepSetting, stream: BatchStream, rounds: int, steps: int) -> Share:
    step = OwnStep(setting)
    kept = [next(stream) for _ in range(_WARM_UP)]
    for batch in kept:
        step.train(batch)

    def alone() -> None:
        for number in range(steps):
            step.train(kept[number % len(kept)])

    def together() -> None:
        for _ in range(steps):
            step.train(next(stream))

    timings = alternately(
        {"alone": alone, "together": together}, rounds, warm_up=False, settle=lambda: settled(setting.device)
    )
    each = {name: tuple(seconds / steps for seconds in timing.wall) for name, timing in timings.items()}
    return Share(each["alone"], each["together"])


def _print(console: Console, share: Share, setting: StepSetting, workers: int) -> None:
    rows = [
        (name, f"{1000 * statistics.median(times):.1f}", f"{1000 * min(times):.1f}", f"{1000 * max(times):.1f}")
        for name, times in (("the step alone", share.alone), (f"with {workers} loader processes", share.together))
    ]
    size = " x ".join(str(edge) for edge in setting.patch)
    title = f"{setting.recipe.name} on {setting.device.type}: a step of {setting.batch} patches of {size} voxels"
    note = f"With its loader a step takes {share.ratio:.2f} times as long as alone."
    if setting.device.type == "cpu":
        note += " Step and loader share the cores here: on a CPU this says how much the loader takes from the step."
    print_table(console, title, ("", "ms", "from", "to"), rows, f"{note}\n{environment()}")
