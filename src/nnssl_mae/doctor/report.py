"""Prints the findings and the verdict."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

from nnssl_mae.doctor.findings import Finding, verdict
from nnssl_mae.doctor.machine import collect_findings


def run_doctor(console: Console) -> int:
    """Print every finding and a verdict; return the exit code (0: all good or warnings only, 1: broken)."""
    with console.status("Looking at this environment (about ten seconds) ..."):
        findings = collect_findings()
    for finding in findings:
        print_finding(console, finding)
    exit_code, sentence = verdict(findings)
    style = "bold red" if exit_code else "bold green"
    console.print()
    console.print(Text(sentence, style=style), soft_wrap=True)
    return exit_code


def print_finding(console: Console, finding: Finding) -> None:
    """Words and not only colours carry the level, so that piped output says the same.

    Paths and commands are never broken or cut; sentences wrap at the console's width.
    """
    style = {"ok": "green", "warning": "yellow", "problem": "bold red"}[finding.level]
    head = Text.assemble((f"{finding.level:<8}", style), f"{finding.name:<21} ", finding.value)
    console.print(head, soft_wrap=True)
    for line in finding.advice.splitlines():
        if line.startswith("    "):
            console.print(Text(" " * 8 + line), soft_wrap=True)
        else:
            width = max(console.width - 8, 30)
            for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False):
                console.print(Text(" " * 8 + part), soft_wrap=True)
