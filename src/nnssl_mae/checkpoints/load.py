"""From the bytes of an untrusted file to plain values and tensors, without executing anything in it."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from packaging.version import Version

from nnssl_mae.checkpoints.numpy_numbers import NUMPY_NUMBERS
from nnssl_mae.errors import UserError
from nnssl_mae.torch_safety import corrupts_memory, runs_code

_JSON_KEYS = ("nnssl_adaptation_plan", "nnssl_mae", "citations", "current_epoch", "model_card")
_TEXT_KEYS = ("licence", "trainer_name")
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_CLASS = re.compile(r"GLOBAL ([\w.]+)")


def load_content(file: Path, shown: str) -> dict[str, Any]:
    """What a checkpoint file holds; tensors on the CPU.

    A safetensors file is given in the form of a ``.pth``: its tensors as ``network_weights``, its metadata beside them.

    Args:
        file: ends in whatever; its first bytes decide.
        shown: what to call it in errors.

    Raises:
        UserError: not a checkpoint, damaged, or it names classes beside tensors and plain values.
    """
    start = _start(file, shown)
    if _is_safetensors(start):
        return _load_safetensors(file, shown)
    problem = _no_checkpoint(start)
    if problem:
        raise UserError(f"{shown} is not a checkpoint: {problem}")
    content = _load_torch(file, shown)
    if not isinstance(content, dict):
        raise UserError(f"{shown} holds a {type(content).__name__}, not a checkpoint; give the file of a checkpoint")
    return content


def _start(file: Path, shown: str) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(200)
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({error.strerror}); check the path and your permissions") from error


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= _LONGEST_HEADER


def _no_checkpoint(start: bytes) -> str:
    """What people have instead of a checkpoint, and what to do; empty if it may be one."""
    if not start:
        return "it is empty; download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return (
            "it is a git-LFS pointer, a few lines that stand for the file; download the file itself, with `git lfs "
            "pull` or as hf://owner/name"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; download the file that the page describes, on the hub by its 'download' link"
    return ""


# ---------------------------------------------------------------------- safetensors


def _load_safetensors(file: Path, shown: str) -> dict[str, Any]:
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
            metadata: dict[str, str] = opened.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{shown} is a damaged safetensors file ({error}); download or copy it again") from error
    content: dict[str, Any] = {"network_weights": weights}
    for key in _JSON_KEYS:
        if key in metadata:
            content[key] = _parsed(metadata[key], key, shown)
    return content | {key: metadata[key] for key in _TEXT_KEYS if key in metadata}


def _parsed(text: str, key: str, shown: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} has damaged metadata ({key}: {error}); download or copy it again") from error


# ---------------------------------------------------------------------- torch's own form


def note_about_torch(file: Path, shown: str) -> tuple[str, ...]:
    """What to tell of a file that the installed torch may not read without harm; nothing of safetensors."""
    if _is_safetensors(_start(file, shown)) or not corrupts_memory(Version(torch.__version__)):
        return ()
    return (
        f"torch {torch.__version__} can be harmed by a hostile file of this kind (CVE-2026-24747): use only files of "
        "people you trust, or safetensors, or torch 2.10 or newer.",
    )


def _load_torch(file: Path, shown: str) -> Any:
    if runs_code(Version(torch.__version__)):
        raise UserError(
            f"{shown} cannot be read safely: torch {torch.__version__} can run code in it (CVE-2025-32434); install "
            "torch 2.10 or newer, or take the weights as safetensors"
        )
    try:
        with _numbers_of_numpy(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about the form of old files
            return _plain_dicts(torch.load(file, map_location="cpu", weights_only=True))
    # Without torch's own text in what follows: it tells people how to switch the protection off.
    except pickle.UnpicklingError as error:
        raise UserError(f"{shown} is not a checkpoint that can be read safely: {_refused(str(error))}") from error
    except Exception as error:  # zip, pickle and torch errors; the file is untrusted and any of them can come
        raise UserError(
            f"{shown} is not a checkpoint that can be read safely ({type(error).__name__}): it is damaged or no "
            "checkpoint at all; download or copy it again"
        ) from error


def _plain_dicts(content: Any) -> Any:
    """Dicts of their own for the file's, whose methods a hostile file can replace; two levels, as deep as we look."""
    if not isinstance(content, dict):
        return content
    return {key: dict(dict.items(value)) if isinstance(value, dict) else value for key, value in dict.items(content)}


def _refused(text: str) -> str:
    match = _CLASS.search(text)
    if match is None:
        return "it is damaged or no checkpoint at all; download or copy it again"
    return (
        f"it holds code beside weights, which is never run (it names {match[1]}); ask whoever wrote it for the weights "
        "alone, as a state dict or as safetensors"
    )


@contextmanager
def _numbers_of_numpy() -> Iterator[None]:
    """nnU-Net's checkpoints hold single numbers of numpy in their log; for the time of loading these are let in.

    What stands for numpy's own functions are ours, which make plain Python numbers and nothing else.
    """
    with torch.serialization.safe_globals(list(NUMPY_NUMBERS)):
        yield
