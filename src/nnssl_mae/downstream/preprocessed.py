"""Whether nnU-Net has preprocessed a labelled dataset for our plans, wholly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FINGERPRINT = "dataset_fingerprint.json"


def missing_cases(folder: Path, fingerprint: Mapping[str, Any]) -> tuple[int, int]:
    """How many training cases are not preprocessed, and how many there are.

    A preprocessing that was killed leaves fewer cases, or a case without its properties, which are written last.

    Args:
        folder: of the preprocessed cases; may be missing.
        fingerprint: nnU-Net's, of the dataset.
    """
    cases = len(fingerprint.get("spacings", ()))
    whole = sum(file.with_suffix(".b2nd").is_file() for file in folder.glob("*.pkl")) if folder.is_dir() else 0
    return max(0, cases - whole), cases
