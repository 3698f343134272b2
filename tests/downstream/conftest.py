"""Datasets of the tests of this folder, each planned once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.downstream.datasets import NAME, Made, write_images, write_made

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Make:
    done: dict[str, Path] = {}

    def make(made: Made, plans: Sequence[str]) -> Path:
        key = repr((made, plans))
        if key not in done:
            done[key] = tmp_path_factory.mktemp("made")
            with pytest.MonkeyPatch.context() as patch:
                for name in ("raw", "preprocessed"):
                    patch.setenv(f"nnUNet_{name}", str(done[key] / name))
                write_made(done[key], made, plans)
        return done[key]

    return make


@pytest.fixture
def make(_made_once: Make, nnunet_folders: Path) -> Make:
    """Puts a dataset into nnU-Net's folders of this test and returns its preprocessed folder."""

    def make(made: Made = Made(), plans: Sequence[str] = ("nnUNetResEncUNetLPlans",)) -> Path:
        # How files are stored changes nothing of the plans.
        source = _made_once(replace(made, stored=("RAS",)), tuple(plans))
        for name in ("raw", "preprocessed"):
            shutil.copytree(source / name / NAME, nnunet_folders / name / NAME)
        write_images(nnunet_folders / "raw" / NAME, made)
        return nnunet_folders / "preprocessed" / NAME

    return make
