"""What a model card says that neither weights nor plans do; it stays in the file, so a later export keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.patches.splits import read_split

KEY = "model_card"
"""Under which it stands in a file."""
_METRICS = {
    "train_losses": "training loss",
    "val_losses": "validation loss",
    "psnr": "PSNR [dB]",
    "ssim": "SSIM",
    "r2": "R2",
}


@dataclass(frozen=True)
class CardWishes:
    """What the user says for the card; None is "not stated", or what the file says already."""

    name: str | None = None
    """Title."""
    data: str | None = None
    """What was trained on, in words that identify nobody."""
    licence: str | None = None
    """Of the weights."""
    preview: Path | None = None
    """A picture for the card. The pictures of a run are titled with the names of scans, so none is taken unasked."""


@dataclass(frozen=True)
class About:
    """For the card, and for the cards of later exports."""

    name: str
    data: str | None = None
    licence: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last epoch."""
    hours: float | None = None
    """That the epochs took together."""
    scans: dict[str, int] = field(default_factory=dict)
    """Numbers of scans, by what they were for."""
    source: dict[str, Any] = field(default_factory=dict)
    """The file that was exported first, see :class:`nnssl_mae.checkpoints.describe.Origin`."""

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


def about(checkpoint: Checkpoint, content: Mapping[str, Any], file: Path, title: str, wishes: CardWishes) -> About:
    """Puts together what the user, the file, and the run's folder say.

    Args:
        checkpoint: as read.
        content: of its file.
        file: the file.
        title: where nobody gives one.
        wishes: of the user; they come first.

    Raises:
        UserError: a wish that cannot be in a card.
    """
    check_wishes(wishes)
    said = _said(content, file)
    return About(
        name=wishes.name or said.name or title,
        data=wishes.data or said.data,
        licence=wishes.licence or checkpoint.origin.licence or said.licence,
        metrics=said.metrics or _last_epoch(content.get("logging")),
        hours=_hours(content.get("logging")) if said.hours is None else said.hours,
        scans=said.scans or _scans(file),
        source=said.source or checkpoint.origin.as_json(),
    )


def check_wishes(wishes: CardWishes) -> None:
    for option, text in (("--name", wishes.name), ("--licence", wishes.licence)):
        if text is not None and (not text.strip() or len(text.splitlines()) != 1 or len(text) > 200):
            raise UserError(f"{option} {text!r} is not possible; give one line of at most 200 letters")
    if wishes.preview is not None and not wishes.preview.is_file():
        raise UserError(f"--preview {wishes.preview} is no file; give a picture, PNG or JPEG")


def _said(content: Mapping[str, Any], file: Path) -> About:
    """What an earlier export wrote; whatever is not of its form is left out: the file may be anybody's."""
    earlier = content.get(KEY)
    if earlier is None and file.suffix == ".safetensors":
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            earlier = _parsed((opened.metadata() or {}).get(KEY, ""))
    earlier = earlier if isinstance(earlier, Mapping) else {}
    source = earlier.get("source")
    return About(
        name=_text(earlier.get("name")) or "",
        data=_text(earlier.get("data")),
        licence=_text(earlier.get("licence")),
        metrics=_numbers(earlier.get("metrics")),
        hours=_numbers(earlier).get("hours"),
        scans={name: int(number) for name, number in _numbers(earlier.get("scans")).items()},
        source=dict(source) if isinstance(source, Mapping) else {},
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _numbers(value: Any) -> dict[str, float]:
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(name): number for name, number in items if _is_number(number)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _last_epoch(logging: Any) -> dict[str, float]:
    """The last values of our log; other trainers' logs have other names, whose meaning is not known here."""
    if not isinstance(logging, Mapping):
        return {}
    histories = {shown: logging.get(key) for key, shown in _METRICS.items()}
    return _numbers({shown: values[-1] for shown, values in histories.items() if isinstance(values, list) and values})


def _hours(logging: Any) -> float | None:
    if not isinstance(logging, Mapping):
        return None
    starts, ends = (logging.get(f"epoch_{when}_timestamps") for when in ("start", "end"))
    if not isinstance(starts, list) or not isinstance(ends, list) or not ends:
        return None
    return round(sum(end - start for start, end in zip(starts, ends, strict=False)) / 3600, 2)


def _scans(file: Path) -> dict[str, int]:
    """How many scans a run of ours had; their names stay in its folder."""
    split = read_split(file.with_name("split.json"))
    return {} if split is None else {"training": len(split["train"]), "validation": len(split["val"])}
