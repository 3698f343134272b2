"""Scripts for Slurm: an array a level of steps, each task one step; nothing here calls a scheduler."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnssl_mae.files import whole_file
from nnssl_mae.study.model import Slurm, Study
from nnssl_mae.study.state import Status
from nnssl_mae.study.steps import Step, depths

FOLDER = Path("slurm")


def write_scripts(
    study: Study, steps: Sequence[Step], statuses: Mapping[str, Status], file: Path, out: Path
) -> list[Path]:
    """``slurm/level_NN[_gpu].sh`` for what is not done, and ``slurm/submit.sh``.

    Args:
        study: for what Slurm is asked.
        steps: all, in order.
        statuses: of each.
        file: the study file.
        out: the study's folder.

    Returns:
        the scripts, ``submit.sh`` last; empty if all is done.
    """
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for old in (out / FOLDER).glob("*.sh"):
        old.unlink()
    arrays = _arrays(steps, statuses)
    if not arrays:
        return []
    scripts: dict[Path, list[str]] = {}
    submit = ["#!/bin/bash", "set -euo pipefail", 'cd "$(dirname "$0")"']
    before = ""
    for level, parts in arrays.items():
        jobs = []
        for is_gpu, names in parts.items():
            word = f"level_{level:02d}" + ("_gpu" if is_gpu else "")
            scripts[out / FOLDER / f"{word}.sh"] = _array(study, word, names, is_gpu, file, out)
            submit.append(f"{word}=$(sbatch --parsable {before}{word}.sh)")
            jobs.append(f"${{{word}}}")
        # Of a level whose tasks have ended somehow: --step refuses what needs a failed one, and the others go on.
        before = f"--dependency=afterany:{':'.join(jobs)} "
        submit.append(f'echo "level {level}: {" ".join(jobs)}"')
    scripts[out / FOLDER / "submit.sh"] = submit
    for path, lines in scripts.items():
        with whole_file(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            temporary.chmod(0o755)
    return list(scripts)


def _arrays(steps: Sequence[Step], statuses: Mapping[str, Status]) -> dict[int, dict[bool, list[str]]]:
    """Names of steps to run, by level and by whether they want a GPU. Done steps take no level."""
    left = [step for step in steps if not statuses[step.name].is_done]
    names = {step.name for step in left}
    kept = [_without(step, names) for step in left]
    levels = depths(kept)
    found: dict[int, dict[bool, list[str]]] = defaultdict(lambda: defaultdict(list))
    for step in kept:
        found[levels[step.name]][step.uses_gpu].append(step.name)
    return {level: dict(found[level]) for level in sorted(found)}


def _without(step: Step, names: set[str]) -> Step:
    needs = tuple(name for name in (*step.needs, *step.after) if name in names)
    return Step(step.name, step.kind, step.command, needs=needs, uses_gpu=step.uses_gpu)


def _array(study: Study, word: str, names: Sequence[str], is_gpu: bool, file: Path, out: Path) -> list[str]:
    slurm = study.slurm
    at_once = "" if slurm.at_once is None else f"%{slurm.at_once}"
    command = shlex.join(("nnssl-mae", "study", str(file), "--out", str(out), "--step"))
    return [
        "#!/bin/bash",
        f"#SBATCH --job-name={study.name}_{word}",
        f"#SBATCH --array=0-{len(names) - 1}{at_once}",
        # Slurm reads no quotes here: a blank would end the name, and it takes % for the beginning of a pattern.
        f"#SBATCH --output={str(out / 'logs').replace('%', '%%').replace(' ', chr(92) + ' ')}/slurm_%A_%a.log",
        *_wishes(slurm, is_gpu and study.device == "cuda"),
        "set -euo pipefail",
        *slurm.setup,
        "STEPS=(",
        *(f"  {shlex.quote(name)}" for name in names),
        ")",
        f'{command} "${{STEPS[$SLURM_ARRAY_TASK_ID]}}"',
    ]


def _wishes(slurm: Slurm, is_gpu: bool) -> list[str]:
    lines = [] if slurm.partition is None else [f"--partition={slurm.partition}"]
    lines += [] if slurm.time is None else [f"--time={slurm.time}"]
    lines += [] if slurm.cpus is None else [f"--cpus-per-task={slurm.cpus}"]
    lines += [f"--gpus={slurm.gpus}"] if is_gpu and slurm.gpus else []
    return [f"#SBATCH {line}" for line in (*lines, *slurm.lines)]
