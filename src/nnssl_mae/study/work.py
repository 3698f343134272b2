"""The ways of ``nnssl-mae study``: show the plan, run it, or write scripts."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.progress import duration
from nnssl_mae.recipes.words import did_you_mean
from nnssl_mae.study.cost import estimate
from nnssl_mae.study.gates import GATES, Gate, in_words
from nnssl_mae.study.page import print_outcome, print_plan, unpinned
from nnssl_mae.study.place import COMPARISON
from nnssl_mae.study.plan import Plan
from nnssl_mae.study.runner import Resources, run_steps
from nnssl_mae.study.slurm import FOLDER, write_scripts
from nnssl_mae.study.state import State, statuses
from nnssl_mae.study.steps import step_keys


def dry_run_study(plan: Plan, out: Path) -> None:
    """Prints steps, commands, what is done and the cost; writes nothing."""
    state = State(out)
    status = statuses(plan.steps, step_keys(plan.steps), state)
    print_plan(plan.study, plan.steps, status, estimate(plan.steps, status, state), out)


def run_study(plan: Plan, out: Path, jobs: int, devices: tuple[str, ...], only: str | None) -> bool:
    """Runs what is not done, or one step; prints how it ended, with the gates; returns whether all is well.

    Raises:
        UserError: there is no step ``only``, or the folder cannot be used.
    """
    names = [step.name for step in plan.steps]
    if only is not None and only not in names:
        raise UserError(f"There is no step '{only}' in this study{did_you_mean(only, names)}")
    console, state = Console(), State(out)
    status = statuses(plan.steps, step_keys(plan.steps), state)
    cost = estimate(plan.steps, status, state)
    if only is None:
        done = sum(one.is_done for one in status.values())
        left = "time not known yet" if cost.seconds is None else f"about {duration(cost.seconds)} of work left"
        say(console, f"Study {plan.study.name} in {out}: {done} of {len(names)} steps done, {left}")
        for note in unpinned(plan.study):
            say(console, f"Note: {note}")
    environment = {name: str(value) for name, value in plan.study.environment.items()}
    resources = Resources(jobs, devices, environment)
    outcome = run_steps(plan.steps, state, resources, console, None if only is None else {only})
    print_outcome(outcome, state, console)
    if only is None and not outcome.failed and not outcome.left:
        _print_end(out, console)
    return not outcome.failed and not outcome.left


def _print_end(out: Path, console: Console) -> None:
    for page in sorted((out / COMPARISON).rglob("compare.html")):
        say(console, f"Comparison: {page}")
    gates = [Gate(**gate) for gate in json.loads((out / COMPARISON / GATES).read_text(encoding="utf-8"))]
    say(console, "What must hold before its numbers count:")
    say(console, in_words(gates))


def write_slurm(plan: Plan, file: Path, out: Path) -> None:
    """Writes the scripts and says how to submit them."""
    console, state = Console(), State(out)
    state.prepare()
    status = statuses(plan.steps, step_keys(plan.steps), state)
    scripts = write_scripts(plan.study, plan.steps, status, file, out)
    if not scripts:
        say(console, "All steps are done; there is nothing to submit.")
        return
    say(console, f"Wrote {len(scripts)} scripts to {out / FOLDER}. No scheduler was called; to submit them:")
    say(console, f"  bash {out / FOLDER / 'submit.sh'}")
