"""The commands of README.md and docs, as they can be run in seconds on a CPU.

They are taken from the pages' text (:mod:`tests.docs.commands`) and run in a world (:mod:`tests.docs.world`) that holds
what a reader has. What is replaced in them, and why; all else is run as the page has it:

| on the page | run | because |
|---|---|---|
| ``/data/...``, ``$nnUNet_results``, ``CHECKPOINT`` and the like | the world's (:func:`readers_words`) | the reader's |
| end of ``prepare``, and of ``pretrain`` with ``--recipe`` | ``--set`` of all that makes a recipe tiny (1) | not days |
| ``--patch 128 128 128`` of ``prepare`` | ``--patch 32 32 32`` | the world's scans are no larger |
| ``--epochs 150`` of ``adapt``, or its end | ``--epochs 2``, and ``--iterations 2`` | not days |
| end of ``adapt``, ``export`` | ``--overwrite`` | pages show alternatives that write plans, or a folder, of one name |
| end of ``bench backbones`` | ``--patch 96`` | one of the three sizes that it takes otherwise |
| end of trainings, predictions, ``preview``, ``probe`` | the CPU, for its like (2) | no GPU |
| ``--nproc-per-node 4`` of ``torchrun`` | ``--nproc-per-node 1``, a launcher a node (3) | one machine |
| ``-np 4``, and end of what works with processes | ``-np 1`` | its imports take longer than its work here |

1. A network of a few features, one epoch of two steps, voxels of 4 mm; but no value that the page sets itself.
2. ``--disable_tta -npp 1 -nps 1`` to predict, ``--most-scans 3 --random 3`` to probe.
3. The tiny batch is of two patches, so two processes.

Files that a page calls by a name, such as ``mine.yaml``, have that name in the world. What a command would find of an
earlier one of its page, where the reader chose between them, is taken away before it (:attr:`Rule.afresh`). What a page
says was done before is done before (:data:`DONE_BEFORE`).
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.docs.commands import ROOT, Command, commands_of
from tests.presets import tiny_changes

Words = tuple[str, ...]
DATASET, LABELLED = "Dataset900_Brains", "Dataset004_Tiny"
PRETRAINING = f"results/{DATASET}/nnUNetTrainerMAE__nnsslMAEPlans__3d_fullres_mae/fold_all"
MODEL = f"results/{LABELLED}/nnUNetTrainerMAEFinetune__mae__3d_fullres_mae"

NOT_EXECUTED: Mapping[Words, str] = {
    ("scripts/demo.sh",): "installs everything and runs 7 minutes; a job of its own in CI",
    ("scripts/test.sh",): "it runs these tests",
    ("scripts/study.sh", "reference", "-j", "6"): "days on a large GPU",
    ("scripts/study.sh", "small"): "hours on two cores; its result is committed and a test recomputes its tables",
}

DONE_BEFORE: Mapping[str, tuple[str, ...]] = {
    # "A fair control is one option away", which its `compare` needs trained.
    "README.md": (
        "nnssl-mae adapt CHECKPOINT -d 4 --from-scratch",
        "nnUNetv2_preprocess -d 4 -plans_name nnsslMAEScratchPlans -c 3d_fullres_mae -np 4",
        "nnUNetv2_train 4 3d_fullres_mae 0 -tr nnUNetTrainerMAEFinetune -p nnsslMAEScratchPlans",
    ),
    # "Few-label folds": of plans that were written and preprocessed.
    "docs/evidence.md": (
        "nnssl-mae adapt CHECKPOINT -d 4",
        "nnUNetv2_preprocess -d 4 -plans_name nnsslMAEFinetunePlans -c 3d_fullres_mae -np 4",
    ),
    # The job of the line between: sbatch --wrap 'nnssl-mae scan ...'.
    "docs/howto/many_scans_slurm.md": ("nnssl-mae scan /data/openneuro /data/clinic -o catalogue",),
}


class NoRule(Exception):
    """A command of a page that nothing says how to run."""


@dataclass(frozen=True)
class Rule:
    """How commands of one program become small."""

    added: Words = ()
    """At the end, option by option; left out where the page gives the option itself."""
    replaced: Mapping[Words, Words] = field(default_factory=dict)
    afresh: Words = ()
    """Folders of the world that are taken away before."""
    afresh_with: Mapping[str, str] = field(default_factory=dict)
    """The same, only with this option."""
    is_of_recipe: bool = False
    """Whether it decides on a recipe of pre-training, if it has ``--recipe``."""


RULES: Mapping[Words, Rule] = {
    ("nnssl-mae", "doctor"): Rule(),
    ("nnssl-mae", "scan", "report"): Rule(),
    ("nnssl-mae", "scan", "include"): Rule(),
    ("nnssl-mae", "scan"): Rule(("-np", "1")),
    ("nnssl-mae", "prepare"): Rule(
        ("-np", "1"),
        {("--patch", "128", "128", "128"): ("--patch", "32", "32", "32")},
        (f"preprocessed/{DATASET}", f"results/{DATASET}"),
        is_of_recipe=True,
    ),
    ("nnssl-mae", "pretrain"): Rule(("--device", "cpu"), is_of_recipe=True),
    ("torchrun",): Rule(("--device", "cpu"), {("--nproc-per-node", "4"): ("--nproc-per-node", "1")}, (PRETRAINING,)),
    ("nnssl-mae", "preview"): Rule(("--device", "cpu")),
    ("nnssl-mae", "probe"): Rule(("--device", "cpu", "--most-scans", "3", "--random", "3")),
    ("nnssl-mae", "inspect"): Rule(),
    ("nnssl-mae", "adapt"): Rule(
        ("--epochs", "2", "--iterations", "2", "--overwrite"), {("--epochs", "150"): ("--epochs", "2")}
    ),
    ("nnssl-mae", "export"): Rule(("--overwrite",)),
    ("nnssl-mae", "splits"): Rule(("-np", "1")),
    ("nnssl-mae", "compare"): Rule(),
    ("nnssl-mae", "study"): Rule(afresh_with={"--slurm": "my_study"}),  # of a finished study it writes nothing
    ("nnssl-mae", "schedule"): Rule(),
    ("nnssl-mae", "bench", "backbones"): Rule(("--patch", "96")),
    ("nnUNetv2_extract_fingerprint",): Rule(("-np", "1"), afresh=(f"preprocessed/{LABELLED}",)),
    ("nnUNetv2_plan_experiment",): Rule(),
    ("nnUNetv2_preprocess",): Rule(replaced={("-np", "4"): ("-np", "1")}),
    ("nnUNetv2_train",): Rule(("-device", "cpu")),
    ("nnUNetv2_predict",): Rule(("-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1")),
}


@dataclass(frozen=True)
class Step:
    """A command as it is run."""

    command: Command
    """As the page has it."""
    words: Words
    afresh: Words
    """Folders of the world that are taken away before."""
    launchers: int = 1
    """How many times it is started at once."""


def steps_of(page: Path, world: Path) -> list[Step]:
    """What is run of a page, in order: what it says was done before, and its commands but for NOT_EXECUTED.

    Raises:
        NoRule: a command that no rule covers.
    """
    name = page.relative_to(ROOT).as_posix()
    before = [Command(name, 0, tuple(line.split())) for line in DONE_BEFORE.get(name, ())]
    commands = [command for command in commands_of(page) if command.words not in NOT_EXECUTED]
    return [step_of(command, world) for command in [*before, *commands]]


def step_of(command: Command, world: Path) -> Step:
    """The command with the table's replacements."""
    program, rule = _rule_of(command)
    readers = readers_words(world)
    words = [_of_the_world(word, readers) for word in command.words]
    for old, new in rule.replaced.items():
        _replace(words, old, new)
    for option in _options(rule.added):
        if option[0] not in words:
            words += option
    if rule.is_of_recipe and (program == ("nnssl-mae", "prepare") or "--recipe" in words):
        words += _tiny_recipe(words)
    afresh = *rule.afresh, *(folder for option, folder in rule.afresh_with.items() if option in words)
    return Step(command, tuple(words), afresh, launchers=int(command.value_of("--nnodes") or 1))


def _rule_of(command: Command) -> tuple[Words, Rule]:
    for length in (3, 2, 1):
        program = command.words[:length]
        if program in RULES:
            return program, RULES[program]
    raise NoRule(
        f"{command}: no rule says how to run this; add one for {' '.join(command.words[:2])!r} to RULES of "
        "tests/docs/walk.py, or the command to NOT_EXECUTED there, with a reason"
    )


def readers_words(world: Path) -> dict[str, str]:
    """What stands for the reader's paths and for words that a reader replaces."""
    return {
        "/data": str(world / "data"),
        "$nnUNet_results": str(world / "results"),
        "CHECKPOINT": "checkpoint_final.pth",
        "RUN_FOLDER": str(world / PRETRAINING),
        "MODEL_FOLDER": str(world / MODEL),
        "SCANS": str(world / "data" / "scans"),
        "FOLDER": "held_out_scans",
        "INPUT": str(world / "raw" / LABELLED / "imagesTs"),
        "OUTPUT": "predictions",
        "FIRST_MACHINE:29500": f"localhost:{_free_port()}",
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _of_the_world(word: str, readers: Mapping[str, str]) -> str:
    for old, new in readers.items():
        if word == old or word.startswith(f"{old}/"):
            return new + word.removeprefix(old)
    return word


def _replace(words: list[str], old: Words, new: Words) -> None:
    for start in reversed(range(len(words))):
        if tuple(words[start : start + len(old)]) == old:
            words[start : start + len(old)] = new


def _options(words: Words) -> Iterator[Words]:
    """Each option with its values."""
    starts = [index for index, word in enumerate(words) if re.match(r"--?[a-z]", word)]
    for start, end in pairwise([*starts, len(words)]):
        yield words[start:end]


_SHORT = {"--batch": "network.batch_size", "--patch": "network.patch_size", "--spacing": "data.spacing"}


def _tiny_recipe(words: list[str]) -> list[str]:
    """``--set`` for what makes the recipe tiny, without what the command decides itself."""
    given = {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "--set"}
    given |= {key for option, key in _SHORT.items() if option in words}
    value_of = Command("", 0, tuple(words)).value_of
    recipe = value_of("--recipe") or "mae"
    recipe = "mae" if recipe.endswith(".yaml") else recipe  # mine.yaml has the base mae
    changes = tiny_changes(recipe)
    if backbone := value_of("--backbone"):
        of_network = {key: value for key, value in tiny_changes(backbone).items() if key.startswith("network.")}
        changes = {key: value for key, value in changes.items() if not key.startswith("network.")} | of_network
    changes["data.spacing"] = (4, 4, 4)
    small = {key: value for key, value in changes.items() if key not in given}
    return [word for key, value in small.items() for word in ("--set", f"{key}={json.dumps(value)}")]
