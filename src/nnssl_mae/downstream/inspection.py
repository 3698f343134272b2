"""What a checkpoint is and what a labelled dataset would get of it, as values; the page is drawn elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.names import one_name
from nnssl_mae.checkpoints.transfer import Report
from nnssl_mae.downstream.labelled import Labelled
from nnssl_mae.downstream.plan import Planned, plan_finetuning
from nnssl_mae.downstream.wish import Mode, Wish
from nnssl_mae.errors import UserError

_PLANS_NAME = "inspected"  # of plans that are never written
_ORIENTED = "NibabelIOWithReorient"


@dataclass(frozen=True)
class ModeSummary:
    """What another ``--mode`` would mean."""

    mode: Mode
    spacing: tuple[float, ...]
    """mm."""
    patch: tuple[int, ...]
    """Voxels."""
    gpu_memory: float | None
    """GB; None is unknown."""
    from_checkpoint: float
    """Share of the weights of the part to transfer that start from the checkpoint."""
    warnings: int
    refused: str = ""
    """Why the mode is not possible; then the rest means nothing."""


@dataclass(frozen=True)
class Inspection:
    """A checkpoint and, where a dataset was given, what fine-tuning it would be like."""

    checkpoint: Checkpoint
    weights: int
    """Numbers in all tensors, each counted once."""
    encoder_weights: int
    """Of these in the encoder."""
    labelled: Labelled | None = None
    wish: Wish | None = None
    planned: Planned | None = None
    modes: tuple[ModeSummary, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        checkpoint = self.checkpoint
        found: dict[str, Any] = {
            "origin": checkpoint.origin.as_json(),
            "network": {**checkpoint.architecture, "weights": self.weights, "encoder_weights": self.encoder_weights},
            "channels": checkpoint.channels,
            "preprocessing": {**checkpoint.plans, **checkpoint.data, "beyond_stock": asdict(checkpoint.beyond_stock)},
            "orientation": orientation(checkpoint),
            "reconstructs": checkpoint.reconstruction is not None,
            "cannot_reconstruct": checkpoint.cannot_reconstruct,
            "notes": list(checkpoint.notes),
        }
        if self.labelled is not None and self.planned is not None and self.wish is not None:
            found["dataset"] = {
                "name": self.labelled.name,
                "channel_names": self.labelled.channel_names,
                "wish": asdict(self.wish),
                **_plan_as_json(self.planned),
                "modes": [asdict(mode) for mode in self.modes],
            }
        return found


def inspect(checkpoint: Checkpoint, labelled: Labelled | None, wish: Wish) -> Inspection:
    """Describes a checkpoint and plans a fine-tuning from it without writing anything.

    Args:
        checkpoint: read already.
        labelled: a dataset, or None for the checkpoint alone.
        wish: what :func:`nnssl_mae.downstream.plan.plan_finetuning` is asked for.

    Raises:
        UserError: the wish is not possible with this checkpoint and dataset.
    """
    sizes = {one_name(name): tensor.numel() for name, tensor in checkpoint.weights.items()}
    found = Inspection(
        checkpoint,
        weights=sum(sizes.values()),
        encoder_weights=sum(size for name, size in sizes.items() if name.startswith("encoder.")),
    )
    if labelled is None:
        return found
    planned = plan_finetuning(checkpoint, labelled, wish, _PLANS_NAME)
    modes = tuple(
        _summary(mode, planned, wish)
        if mode == wish.mode
        else _other_mode(checkpoint, labelled, replace(wish, mode=mode))
        for mode in get_args(Mode)
    )
    return replace(found, labelled=labelled, wish=wish, planned=planned, modes=modes)


def orientation(checkpoint: Checkpoint) -> str:
    """How the volumes of pre-training lay, in words."""
    if not checkpoint.is_preprocessing_known:
        return "not known"
    reader = checkpoint.plans["image_reader_writer"]
    turned = "turned to RAS" if reader == _ORIENTED else "as stored in the files"
    order = list(checkpoint.plans["transpose_forward"])
    moved = "" if order == [0, 1, 2] else f", axes in the order {' '.join(map(str, order))}"
    return f"{turned}{moved} ({reader})"


def _other_mode(checkpoint: Checkpoint, labelled: Labelled, wish: Wish) -> ModeSummary:
    """Another mode with all else equal; a patch that was chosen by hand may not be possible there."""
    try:
        return _summary(wish.mode, plan_finetuning(checkpoint, labelled, wish, _PLANS_NAME), wish)
    except UserError as refusal:
        return ModeSummary(wish.mode, (), (), None, 0.0, 0, refused=str(refusal))


def _summary(mode: Mode, planned: Planned, wish: Wish) -> ModeSummary:
    configuration = planned.configuration
    return ModeSummary(
        mode=mode,
        spacing=tuple(map(float, configuration["spacing"])),
        patch=tuple(map(int, configuration["patch_size"])),
        gpu_memory=planned.gpu_memory,
        from_checkpoint=0.0 if planned.report is None or wish.part is None else planned.report.share_taken(wish.part),
        warnings=len(planned.warnings) + len(planned.beyond_stock),
    )


def _plan_as_json(planned: Planned) -> dict[str, Any]:
    report = planned.report
    return {
        "configuration": planned.configuration,
        "image_reader_writer": planned.plans["image_reader_writer"],
        "transpose_forward": planned.plans["transpose_forward"],
        "warnings": list(planned.warnings),
        "beyond_stock": list(planned.beyond_stock),
        "notes": list(planned.notes),
        "gpu_memory": planned.gpu_memory,
        "gpu_memory_how": planned.gpu_memory_how,
        "transfer": None if report is None else _report_as_json(report),
    }


def _report_as_json(report: Report) -> dict[str, Any]:
    return {
        "tensors": [asdict(fate) for fate in report.fates],
        "ignored": [asdict(tensor) for tensor in report.ignored],
        "counts": {what: len(getattr(report, what)) for what in ("loaded", "adapted", "random")},
    }
