"""The page of all messages ``docs/troubleshooting.md``, written from the sources of the package.

python -m nnssl_mae.cli.troubleshooting > docs/troubleshooting.md

Every sentence for users is an argument of :class:`nnssl_mae.errors.UserError` or of its subclass, so a walk through the
syntax trees finds them all. What a sentence fills in at run time is shown as an ellipsis.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl_mae.doctor.findings import (
    PLUGIN_FOLDER,
    Finding,
    judge_cuda,
    judge_cudnn,
    judge_folder,
    judge_free_disk,
    judge_nnunet,
    judge_python,
    judge_registration,
    judge_torch,
    judge_torchvision,
)
from nnssl_mae.markdown import escaped

COMMAND = "python -m nnssl_mae.cli.troubleshooting > docs/troubleshooting.md"
HOLE = "…"

_PACKAGE = Path(__file__).resolve().parents[1]
_EXCEPTIONS = ("UserError", "ResumableError")
_ROOMS = {
    "catalogue": "Finding and checking scans (`scan`)",
    "scans": "Preparing (`prepare`)",
    "recipes": "Recipes and `--set`",
    "cli": "Options of commands",
    "patches": "Reading patches while training",
    "training": "Training",
    "networks": "Networks",
    "checkpoints": "Reading checkpoints (`inspect`, `adapt`, `preview`, `export`)",
    "downstream": "Plans for a labelled dataset (`adapt`, `inspect -d`)",
    "few_labels": "Few-label folds (`splits`)",
    "evaluation": "Preview",
    "probe": "Probe",
    "comparison": "Comparisons (`compare`)",
    "study": "Studies (`study`)",
    "export": "Giving checkpoints away (`export`)",
    "brains": "Semi-synthetic brains (`brains`)",
    "demo": "Demonstration (`demo`)",
    "bench": "Measuring speed (`bench`)",
    "doctor": "Checking the machine (`doctor`)",
}
_ELSEWHERE = "Folders, plans and the machine"

_INTRODUCTION = f"""\
# Troubleshooting

<!-- Generated; do not edit. `{COMMAND}` -->

Start with `nnssl-mae doctor`: it checks versions, folders, and whether nnU-Net finds the trainers, and says what to do.

- **A message of ours** is one sentence that names the file or value, what is wrong, and what to do. All of them stand
  below, by the part of the package they come from; `{HOLE}` is where a file, a value, a number or a further reason
  stands. Search for words of yours that are not names or numbers.
- **Exit codes**: 2 bad input, 75 no space or memory (the same command goes on where it stopped), 130 Ctrl-C, 1 a
  `--strict` preparation with failures or a failed step of a study, 143 and 138 a training that was told to stop
  ([clusters.md](clusters.md)).
- **A traceback of Python** is no message of ours. If nnU-Net's own lines are at its end, the cause is mostly a version
  (`doctor`) or a dataset that nnU-Net refuses (`nnUNetv2_plan_and_preprocess -d 4 --verify_dataset_integrity`).
- **`-tr` was forgotten**: pre-training ends with "No such file ... _seg.b2nd" in a process of nnU-Net's (its own
  trainer looks for labels), prediction with "No such file ... nnUNetTrainer__nnsslMAEFinetunePlans". Fine-tuning runs,
  but from random weights: its log does not begin with "Pre-trained weights:". Give `-tr nnUNetTrainerMAE`, and
  `-tr nnUNetTrainerMAEFinetune`.
  Otherwise it is a bug of this package.
- **`-tr nnUNetTrainerMAE` is not found**: [registration.md](registration.md).
- **A scan was left out**: its reason stands in `catalogue.csv` and `left_out.csv` ([scans.md](scans.md)).
- **A run was killed**: give `--c` ([clusters.md](clusters.md)).
"""


@dataclass(frozen=True, order=True)
class Sentence:
    """A message, and the module that says it."""

    text: str
    """In one line, with :data:`HOLE` for what is filled in."""
    module: str
    """Such as ``scans/prepare.py``."""

    @property
    def room(self) -> str:
        """The part of the package, as a heading."""
        return _ROOMS.get(self.module.split("/")[0], _ELSEWHERE)


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION, _doctor(), *_rooms(sentences(_PACKAGE))])


def sentences(package: Path) -> list[Sentence]:
    """Every message below a folder of sources, each once a module, by module and line.

    Messages of which nothing is known before the run (``UserError(str(error))``) are left out: they repeat what another
    place says.
    """
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(package.rglob("*.py"))}
    constants = {_dotted(file, package): _constants(tree) for file, tree in trees.items()}
    found: dict[Sentence, None] = {}
    for file, tree in trees.items():
        known = _imported(tree, constants) | constants[_dotted(file, package)]
        for text in _messages(tree, known):
            if re.search(r"\w{3}", text):
                found[Sentence(text, file.relative_to(package).as_posix())] = None
    return list(found)


def _dotted(file: Path, package: Path) -> str:
    """The module as it is imported, such as ``nnssl_mae.scans.prepare``."""
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _constants(tree: ast.Module) -> dict[str, str]:
    """Words that a module gives a name at its top level."""
    return {
        target.id: _text(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant | ast.JoinedStr)
    }


def _imported(tree: ast.Module, constants: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Those words of other modules that a module imports, by the names that it gives them."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: words[alias.name]
        for node in imports
        for alias in node.names
        if alias.name in (words := constants.get(node.module or "", {}))
    }


def _messages(tree: ast.AST, known: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _EXCEPTIONS and node.args:
            yield _joined(_text(node.args[0], known))


def _text(node: ast.expr, known: Mapping[str, str]) -> str:
    """The words of an expression that makes a string, as far as they are known before the run."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known) if isinstance(node.value, ast.Name) else HOLE
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    return known.get(node.id, HOLE) if isinstance(node, ast.Name) else HOLE


def _joined(text: str) -> str:
    """One line, neighbouring holes as one."""
    return re.sub(rf"{HOLE}(\s*{HOLE})+", HOLE, " ".join(text.split()))


def _rooms(found: Sequence[Sentence]) -> Iterator[str]:
    for title in (*_ROOMS.values(), _ELSEWHERE):
        here = [one for one in found if one.room == title]
        if here:
            yield "\n".join([f"\n## {title}\n", *map(_line, _once(here))])


def _once(found: Iterable[Sentence]) -> list[tuple[str, list[str]]]:
    """Each text with all modules of a room that say it, by the alphabet of modules."""
    modules: dict[str, list[str]] = {}
    for one in found:
        modules.setdefault(one.text, []).append(one.module)
    return list(modules.items())


def _line(entry: tuple[str, list[str]]) -> str:
    text, modules = entry
    return f"- {escaped(text)} ({', '.join(f'`{module}`' for module in modules)})"


def _doctor() -> str:
    """What ``doctor`` says of the usual causes, by asking it about machines that have them."""
    lines = ["\n## What `nnssl-mae doctor` finds, and its advice\n"]
    for one in _usual_findings():
        advice = " ".join(_advice(line) for line in one.advice.splitlines())
        lines.append(f"- **{one.name}: {escaped(one.value)}** ({one.level}). {advice}")
    return "\n".join(lines)


def _advice(line: str) -> str:
    """An indented line of advice is a command."""
    return f"`{line.strip()}`" if line.startswith("    ") else escaped(line.strip())


def _usual_findings() -> list[Finding]:
    plugin = Path("/path/to") / PLUGIN_FOLDER.parent.name / PLUGIN_FOLDER.name
    return [
        judge_python("3.9"),
        judge_torch(None),
        judge_torch("2.5.1"),
        judge_torch("2.8.0"),
        judge_torch("2.9.0"),
        judge_torchvision("2.13.0+cpu", "0.28.0", "torch==2.13.0", "operator torchvision::nms does not exist"),
        judge_nnunet(None),
        judge_nnunet("2.7.0"),
        judge_cuda(None, (), driver_present=True),
        judge_cuda("12.8", (), driver_present=True),
        judge_cudnn(91002, gpu_available=True),
        judge_folder("nnUNet_raw", None),
        judge_folder("nnUNet_raw", "/a/folder/that/is/not/there"),
        judge_free_disk("nnUNet_results", 5 * 10**9),
        judge_registration(False, {}, plugin),
    ]


if __name__ == "__main__":
    print(page())
