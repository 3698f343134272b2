"""Whoever types what README.md and docs show comes to the end of every page.

What is replaced to do so in seconds a command: :mod:`tests.docs.walk`. What is there before: :mod:`tests.docs.world`.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, Command, commands_of, our_verb, pages, stock_arguments
from tests.docs.stand_in_hub import hub_with, settings
from tests.docs.walk import DATASET, LABELLED, NOT_EXECUTED, NoRule, Step, Words, step_of, steps_of
from tests.docs.world import build, shell_in
from tests.end_to_end.shell import Shell

PAGES = [page.relative_to(ROOT).as_posix() for page in pages() if commands_of(page)]

_PREPARED = f"preprocessed/{DATASET}"
_RUN = f"results/{DATASET}/nnUNetTrainerMAE__{{}}__3d_fullres_mae/fold_all/checkpoint_final.pth"
_PLANS = f"preprocessed/{LABELLED}/{{}}.json"
_MODEL = f"results/{LABELLED}/nnUNetTrainerMAEFinetune__{{}}__3d_fullres_mae/fold_{{}}/validation/summary.json"
_COMPARISON = "comparison/compare.html"
_STUDY = "my_study/comparison/compare.html"

PROMISED: Mapping[str, tuple[str, ...]] = {
    "README.md": (
        _MODEL.format("nnsslMAEFinetunePlans", 0), "predictions/case200.nii.gz", "predictions/case201.nii.gz",
        "catalogue/scan.html", f"{_PREPARED}/nnsslMAEPlans.json", _RUN.format("mySparsePlans"),
        _RUN.format("nnFormerPlans"), "preview/*_preview.png", f"preprocessed/{LABELLED}/nnssl_folds.json", _COMPARISON,
        _STUDY, "probe/probe.png",
    ),
    "docs/backbones.md": (_RUN.format("primusPlans"), "backbones.json"),
    "docs/clusters.md": (_RUN.format("nnsslMAEPlans"),),
    "docs/concepts.md": ("out.png",),
    "docs/evidence.md": (
        f"preprocessed/{LABELLED}/nnssl_folds.json", _MODEL.format("nnsslMAEFinetunePlans", 100), _COMPARISON,
        "my_study/slurm/*.sh", "probe/probe.png",
    ),
    "docs/finetuning.md": (
        *(_PLANS.format(name) for name in ("nnsslMAEFinetunePlans", "nnsslMAEScratchPlans", "S3DPlans", "AmaesPlans")),
        "out_safetensors/README.md", "out_nnssl/README.md", "out_nnunet/README.md", "model.zip",
    ),
    "docs/first_hour.md": (
        "catalogue/scan.html", _RUN.format("nnsslMAEPlans"), "preview/*_preview.png",
        _MODEL.format("nnsslMAEFinetunePlans", 0), _MODEL.format("nnsslMAEScratchPlans", 0),
        "predictions/case200.nii.gz", "predictions/case201.nii.gz", _COMPARISON,
    ),
    "docs/howto/downloaded_checkpoint.md": (
        _MODEL.format("nnsslMAEFinetunePlans", 0), _MODEL.format("nnsslMAEScratchPlans", 0),
    ),
    "docs/howto/fair_comparison.md": (
        _MODEL.format("nnsslMAEFinetunePlans", 100), _MODEL.format("nnsslMAEScratchPlans", 100), _COMPARISON, _STUDY,
    ),
    "docs/howto/many_scans_slurm.md": ("catalogue_quick/catalogue.parquet", "catalogue/scan.html"),
    "docs/howto/one_gpu.md": (_RUN.format("nnsslMAEPlans"), _RUN.format("nnsslMAEPlans_gpu")),
    "docs/index.md": (f"{_PREPARED}/nnsslMAEPlans.json",),
    "docs/recipes.md": (f"{_PREPARED}/nnsslMAEPlans.json",),
    "docs/registration.md": (),
    "docs/scans.md": (
        "catalogue/scan.html", f"{_PREPARED}/nnsslMAEPlans.json",
        f"{_PREPARED}/left_out.csv",  # a scan of the clinic is a test image of dataset 4
    ),
    "docs/study.md": ("tables/compare.html",),
}  # fmt: skip
"""Files that stand there after a page, and did not before: patterns below the world."""


# ---------------------------------------------------------------------- without running them


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_has_a_rule_and_stays_one_that_its_program_accepts(page: str, tmp_path: Path) -> None:
    for step in steps_of(ROOT / page, tmp_path):
        assert_accepted(step.words)


def assert_accepted(words: Words) -> None:
    """By the parser of its program."""
    if words[0] == "torchrun":
        words = ("nnssl-mae", *words[words.index("nnssl_mae") + 1 :])
    if words[0] == "nnssl-mae":
        our_verb(words[1:])
    else:
        stock_arguments(words)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_own_options_are_kept_and_nothing_of_the_reader_is_left(page: str, tmp_path: Path) -> None:
    for step in steps_of(ROOT / page, tmp_path):
        left = [word for word in step.words if re.match(r"/data|\$|[A-Z][A-Z_]+(:|$)|\.\.\.", word)]
        assert not left, f"{step.command}: say in readers_words of tests/docs/walk.py what stands for {left}"
        options = {word for word in step.command.words if re.match(r"--?[a-z]", word)}
        assert options <= set(step.words), step.command


def test_what_is_not_executed_are_few_scripts_and_stands_on_the_pages() -> None:
    shown = {command.words for page in pages() for command in commands_of(page)}
    assert NOT_EXECUTED.keys() <= shown
    assert all(words[0].startswith("scripts/") for words in NOT_EXECUTED)
    assert len(NOT_EXECUTED) <= 4 and all(NOT_EXECUTED.values())


@pytest.mark.parametrize("line", ["nnssl-mae adept CHECKPOINT", "nnssl-mae bench step", "scripts/new.sh"])
def test_a_command_that_nothing_says_how_to_run_is_not_passed_over(line: str, tmp_path: Path) -> None:
    with pytest.raises(NoRule, match=r"add one for .* to RULES of tests/docs/walk.py"):
        step_of(Command("docs/page.md", 7, tuple(line.split())), tmp_path)


def test_values_that_a_page_sets_itself_are_not_made_tiny(tmp_path: Path) -> None:
    line = "nnssl-mae prepare SCANS -d 900 -n Brains --batch 4 --set masking.block_size=16"
    words = step_of(Command("docs/page.md", 7, tuple(line.split())), tmp_path).words
    decided = [word.partition("=")[0] for word in words if "=" in word]
    assert decided.count("masking.block_size") == 1
    assert "network.batch_size" not in decided and "network.base_features" in decided


def test_every_page_with_commands_says_what_it_gives() -> None:
    assert PROMISED.keys() == set(PAGES), "add the page to PROMISED: files that its commands leave"


# ---------------------------------------------------------------------- running them


@dataclass(frozen=True)
class World:
    """What there is before a page."""

    folder: Path
    hub: str
    """Address of the stand-in for the Hugging Face hub."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    build(folder)
    with hub_with(folder / "openmind.pth") as address:
        yield World(folder, address)


@pytest.mark.soak
@pytest.mark.end_to_end
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_walked_to_its_end(page: str, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "world"
    shutil.copytree(world.folder, folder)
    shell = shell_in(folder)
    shell.environment |= settings(world.hub, folder / "hub")
    before = time.time()
    for step in steps_of(ROOT / page, folder):
        run(shell, step)
    for pattern in PROMISED[page]:
        assert any(made.stat().st_mtime >= before for made in folder.glob(pattern)), pattern


def run(shell: Shell, step: Step) -> None:
    """Runs a step; its exit code, or that of all its launchers, must be 0."""
    for name in step.afresh:
        shutil.rmtree(shell.folder / name, ignore_errors=True)
    launched = [shell.start(step.words[0], *step.words[1:]) for _ in range(step.launchers)]
    outputs = [process.communicate()[0] for process in launched]
    codes = [process.returncode for process in launched]
    assert not any(codes), f"{step.command}\nrun as {' '.join(step.words)}\nexit codes {codes}\n{''.join(outputs)}"
