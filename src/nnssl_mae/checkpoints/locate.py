"""From what the user gave to the file to read: a path, a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl_mae.checkpoints.hub import fetch, is_hub
from nnssl_mae.errors import UserError
from nnssl_mae.files import read_json

USUAL_NAMES = ("checkpoint_final.pth", "model.safetensors")
PLAN_FILE = "adaptation_plan.json"
ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is read from."""

    file: Path
    """On this machine; of a hub repository, in the hub's cache."""
    label: str
    """For others: the file's name, or ``hf://owner/name@commit``; never a path."""
    shown: str
    """For the user's eyes, in errors."""
    plan_file: Path | None = None
    """The adaptation plan beside the file, if there is one."""

    def __str__(self) -> str:
        return self.shown

    def plan_beside(self) -> dict[str, Any] | None:
        """The adaptation plan that lies beside the file, or None.

        Raises:
            UserError: it is damaged.
        """
        return None if self.plan_file is None else read_json(self.plan_file, "download it again")


def locate(where: str | Path) -> Source:
    """Finds, and if need be fetches, a checkpoint.

    Args:
        where: a file; a folder with ``checkpoint_final.pth``, ``model.safetensors`` or a single file with weights; or
            ``hf://owner/name``, then perhaps ``/file`` and ``@revision``.

    Raises:
        UserError: there is none, or it is not clear which is meant; or the hub cannot give it.
    """
    if is_hub(str(where)):
        fetched = fetch(str(where), USUAL_NAMES, PLAN_FILE, choose)
        return Source(fetched.file, fetched.label, fetched.shown, fetched.plan_file)
    path = Path(where)
    if path.is_dir():
        path = path / _chosen_in(path)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist or is not a file; give the path of a checkpoint, such as {USUAL_NAMES[0]}, or "
            "hf://owner/name"
        )
    plan_file = path.with_name(PLAN_FILE)
    return Source(path, path.name, str(path), plan_file if plan_file.is_file() else None)


def _chosen_in(folder: Path) -> str:
    """As :func:`choose`, in a folder on disk; one that is a level or two too high is told of the folder below."""
    names = [each.name for each in folder.iterdir() if each.is_file()]
    if not any(name.endswith(ENDINGS) for name in names):
        below = (found for depth in ("*", "*/*") for found in sorted(folder.glob(f"{depth}/{USUAL_NAMES[0]}")))
        if found := next(below, None):
            raise UserError(f"{folder} holds no checkpoint, but {found.parent} below it does; give that folder")
    return choose(names, str(folder))


def choose(names: Iterable[str], folder: str) -> str:
    """The file with the weights among those of a folder or repository: the usual name, or the only one.

    Raises:
        UserError: none or several.
    """
    found = sorted(name for name in names if name.endswith(ENDINGS))
    for usual in USUAL_NAMES:
        if usual in found:
            return usual
    if not found:
        raise UserError(
            f"{folder} holds no checkpoint: {USUAL_NAMES[0]} does not exist there, nor another file that ends in "
            f"{', '.join(ENDINGS)}; give the path of the checkpoint itself"
        )
    if len(found) > 1:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise UserError(f"{folder} holds several checkpoints ({shown}); say which: {folder.rstrip('/')}/{found[0]}")
    return found[0]
