"""Whoever follows docs/first_hour.md to the letter comes to its end.

What is replaced to do so in minutes: :mod:`tests.docs.walk`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY_RECIPE
from tests.docs.commands import our_verb, stock_arguments
from tests.docs.walk import RECIPE, commands
from tests.end_to_end.shell import Shell
from tests.tiny_scans import write_labelled, write_unlabelled

_STAGES = ("doctor", "scan", "prepare", "pretrain", "nnUNetv2_train", "preview",
           "nnUNetv2_extract_fingerprint", "nnUNetv2_plan_experiment", "inspect", "adapt", "nnUNetv2_preprocess",
           "nnUNetv2_predict", "compare")  # fmt: skip


def test_every_stage_of_the_page_is_walked_with_commands_that_are_accepted(tmp_path: Path) -> None:
    walked = commands(tmp_path)
    names = [words[1] if words[0] == "nnssl-mae" else words[0] for words in walked]
    assert list(dict.fromkeys(names)) == list(_STAGES)
    for words in walked:
        if words[0] == "nnssl-mae":
            our_verb(words[1:])
        else:
            stock_arguments(words)


def test_nothing_of_the_readers_machine_is_left(tmp_path: Path) -> None:
    words = [word for command in commands(tmp_path) for word in command]
    assert not [word for word in words if word.startswith(("/data", "$")) or word in ("INPUT", "OUTPUT")]
    assert RECIPE in words


@pytest.mark.soak
@pytest.mark.end_to_end
def test_the_first_hour_can_be_walked_to_its_end(tmp_path: Path) -> None:
    write_unlabelled(tmp_path / "scans", count=8)
    write_labelled(tmp_path / "raw", 4, "Tiny", count=5, tests=2)
    (tmp_path / RECIPE).write_text(yaml.safe_dump(TINY_RECIPE))
    for name in ("preprocessed", "results"):
        (tmp_path / name).mkdir()
    shell = Shell(tmp_path)
    for words in commands(tmp_path):
        shell(*words)
    assert (tmp_path / "catalogue" / "scan.html").is_file()
    assert list((tmp_path / "preview").glob("*_preview.png"))
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 2
    page = (tmp_path / "comparison" / "compare.html").read_text(encoding="utf-8")
    assert "mae" in page and "scratch" in page
