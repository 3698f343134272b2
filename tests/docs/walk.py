"""The commands of docs/first_hour.md, as they can be run in minutes on a CPU.

What is replaced in them, and why; all else is run as the page has it:

| on the page | run | because |
|---|---|---|
| ``/data/scans`` | eight scans of 4 mm, written by the test | the reader's scans |
| ``--batch 2`` | ``--recipe tiny.yaml --spacing 4 4 4`` | three epochs of three steps, a tiny network; not days |
| ``$nnUNet_results`` | the test's folder | a shell would fill it in |
| ``INPUT``, ``OUTPUT`` | the test images of the dataset, a new folder | the reader's folders |
| end of ``nnUNetv2_train``, ``nnUNetv2_predict`` | ``-device cpu`` added, to predict also ``--disable_tta`` | no GPU |
| end of ``nnssl-mae pretrain``, ``preview`` | ``--device cpu`` added | no GPU |
| end of ``nnssl-mae adapt`` | ``--epochs 2 --iterations 2`` added | two short epochs in place of a thousand |
| ``-np 4``, and end of ``nnssl-mae prepare`` | ``-np 2`` | the machines that test |

Lines that are no command of ours or of nnU-Net's (``pip install``, ``export``, ``mkdir``) are what the test sets up.
"""

from __future__ import annotations

from pathlib import Path

from tests.docs.commands import ROOT, commands_of

PAGE = ROOT / "docs" / "first_hour.md"
RECIPE = "tiny.yaml"

_ADDED = {
    ("nnUNetv2_train",): ("-device", "cpu"),
    ("nnUNetv2_predict",): ("-device", "cpu", "--disable_tta"),
    ("nnssl-mae", "prepare"): ("-np", "2"),
    ("nnssl-mae", "pretrain"): ("--device", "cpu"),
    ("nnssl-mae", "preview"): ("--device", "cpu"),
    ("nnssl-mae", "adapt"): ("--epochs", "2", "--iterations", "2"),
}
_REPLACED = {
    ("--batch", "2"): ("--recipe", RECIPE, "--spacing", "4", "4", "4"),
    ("-np", "4"): ("-np", "2"),
}


def commands(folder: Path) -> list[tuple[str, ...]]:
    """The commands of the page in order, with the table's replacements, for nnU-Net's folders below ``folder``."""
    return [_small(command.words, folder) for command in commands_of(PAGE)]


def _small(words: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    paths = {
        "/data/scans": str(folder / "scans"),
        "$nnUNet_results": str(folder / "results"),
        "INPUT": str(folder / "raw" / "Dataset004_Tiny" / "imagesTs"),
        "OUTPUT": str(folder / "predictions"),
    }
    small = [_with_paths(word, paths) for word in words]
    for old, new in _REPLACED.items():
        for start in reversed(range(len(small))):
            if tuple(small[start : start + len(old)]) == old:
                small[start : start + len(old)] = new
    added = [more for program, more in _ADDED.items() if tuple(small[: len(program)]) == program]
    return tuple(small) + (added[0] if added else ())


def _with_paths(word: str, paths: dict[str, str]) -> str:
    for old, new in paths.items():
        if word == old or word.startswith(f"{old}/"):
            return new + word.removeprefix(old)
    return word
