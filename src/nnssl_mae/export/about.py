"""What a model card says that neither weights nor plans do; it stays in the file, so a later export keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import safetensors

from nnssl_mae.checkpoints.describe import Checkpoint, Origin
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
_PURPOSES = ("training", "validation")
_FORMATS = get_args(get_type_hints(Origin)["format"])
_HUB = re.compile(r"hf://[\w.-]+/[\w.-]+(@[\w.-]+)?")
_NAME = re.compile(r"[\w.+ -]{1,100}")
"""Of a recipe, a trainer, a version or a licence: no path."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


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
    """The file that was exported, as it was read, see :class:`nnssl_mae.checkpoints.describe.Origin`."""
    exported_from: dict[str, Any] = field(default_factory=dict)
    """The file that was exported first, if ``source`` is an export itself; only its word stands for that."""

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
    origin = checkpoint.origin.as_json()
    unsaid = {key: said.source[key] for key in ("epochs", "steps") if origin[key] is None and key in said.source}
    return About(
        name=wishes.name or said.name or title,
        data=_line(wishes.data) or said.data,
        licence=wishes.licence or _line(checkpoint.origin.licence) or said.licence,
        metrics=said.metrics or _last_epoch(content.get("logging")),
        hours=_hours(content.get("logging")) if said.hours is None else said.hours,
        scans=said.scans or _scans(file),
        source=origin | unsaid,
        exported_from=said.exported_from or said.source,
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
    hours = earlier.get("hours")
    return About(
        name=_line(earlier.get("name")) or "",
        data=_line(earlier.get("data")),
        licence=_line(earlier.get("licence")),
        metrics=_known(earlier.get("metrics"), dict.fromkeys(_METRICS.values(), _is_number)),
        hours=hours if _is_number(hours) else None,
        scans=_known(earlier.get("scans"), dict.fromkeys(_PURPOSES, _is_count)),
        source=_source(earlier.get("source")),
        exported_from=_source(earlier.get("exported_from")),
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _known(value: Any, checks: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """Of a mapping, what has a known name and a value that passes the check of that name."""
    found = value if isinstance(value, Mapping) else {}
    return {name: found[name] for name, passes in checks.items() if name in found and passes(found[name])}


def _source(value: Any) -> dict[str, Any]:
    """Of what an earlier card says of its source: what an origin has, in single words and numbers, without a path."""
    known = _known(value, _ORIGIN)
    if "label" in known and not _HUB.fullmatch(known["label"]):
        known["label"] = _line(re.split(r"[/\\]", known["label"].rstrip("/\\"))[-1])
    return known


def _line(value: Any) -> str | None:
    """A text in one line, so that it ends where its place in the card ends; None if there is none."""
    return " ".join(value.split()) or None if isinstance(value, str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value) and value >= 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


_ORIGIN: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value in _FORMATS,
    "label": lambda value: isinstance(value, str),
    "sha256": lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
    "method": _is_name,
    "epochs": _is_count,
    "steps": _is_count,
    "version": _is_name,
    "licence": _is_name,
}
"""What of an origin is kept, and what its values have to be."""


def _last_epoch(logging: Any) -> dict[str, float]:
    """The last values of our log; other trainers' logs have other names, whose meaning is not known here."""
    if not isinstance(logging, Mapping):
        return {}
    histories = {shown: logging.get(key) for key, shown in _METRICS.items()}
    last = {shown: values[-1] for shown, values in histories.items() if isinstance(values, list) and values}
    return {shown: value for shown, value in last.items() if _is_number(value)}


def _hours(logging: Any) -> float | None:
    if not isinstance(logging, Mapping):
        return None
    starts, ends = (logging.get(f"epoch_{when}_timestamps") for when in ("start", "end"))
    if not isinstance(starts, list) or not isinstance(ends, list) or not ends:
        return None
    if not all(map(_is_number, [*starts, *ends])):
        return None
    return round(sum(end - start for start, end in zip(starts, ends, strict=False)) / 3600, 2)


def _scans(file: Path) -> dict[str, int]:
    """How many scans a run of ours had; their names stay in its folder."""
    split = read_split(file.with_name("split.json"))
    return {} if split is None else {"training": len(split["train"]), "validation": len(split["val"])}
