"""The page of all commands ``docs/reference/cli.md``, written from the verbs themselves.

python -m nnssl_mae.cli.reference > docs/reference/cli.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer

from nnssl_mae.cli import app
from nnssl_mae.markdown import escaped, table

COMMAND = "python -m nnssl_mae.cli.reference > docs/reference/cli.md"
PROGRAM = "nnssl-mae"

_INTRODUCTION = f"""\
# Commands

<!-- Generated; do not edit. `{COMMAND}` -->

Every verb of `nnssl-mae`, with every option. `nnssl-mae VERB -h` prints the same, `nnssl-mae --version` the version.
Bad input ends with one sentence on stderr and exit code 2; a machine that is short of memory or disk with exit code 75,
and then the same command goes on where it stopped. Options marked "required" have no default. Those marked "repeatable"
may be given several times.

Training, preprocessing of labelled data and prediction are nnU-Net's own commands; `nnUNetv2_train -h` lists theirs.
"""


def verbs() -> Iterator[tuple[str, Any]]:
    """Every command that can be run, as (``nnssl-mae scan report``, click command), by the alphabet."""
    yield from sorted(_below(PROGRAM, typer.main.get_command(app)), key=lambda one: one[0])


def reference() -> str:
    """The whole page as Markdown."""
    every = list(verbs())
    short = [(f"[`{name}`](#{_anchor(name)})", _first_line(command.help)) for name, command in every]
    return "\n".join([_INTRODUCTION, table(("command", "what it does"), short), *(_verb(*one) for one in every)])


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for word, child in children.items():
        yield from _below(f"{name} {word}", child)


@dataclass(frozen=True)
class _Parameter:
    """One argument or option, its value as the verb's own signature has it."""

    spellings: tuple[str, ...]
    """``-d``, ``--dataset``; of an argument its word in capitals."""
    negation: tuple[str, ...]
    """The other spelling of a pair such as ``--small/--whole``."""
    help: str
    kind: Any
    default: Any
    is_argument: bool

    @property
    def required(self) -> bool:
        """It has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def several(self) -> bool:
        """It takes a list."""
        return any(get_origin(one) is list for one in (self.kind, *get_args(self.kind)))


def _parameters(command: Any) -> list[_Parameter]:
    """What click knows of names and help, and what Python knows of types and defaults."""
    function = inspect.unwrap(command.callback)
    kinds, signature = get_type_hints(function), inspect.signature(function)
    found = []
    for one in command.params:
        if one.name not in kinds:
            continue  # --help
        is_argument = one.param_type_name == "argument"
        spellings = ((one.metavar or one.name.upper()).removesuffix("..."),) if is_argument else tuple(one.opts)
        default = signature.parameters[one.name].default
        negation = tuple(one.secondary_opts)
        found.append(_Parameter(spellings, negation, one.help or "", kinds[one.name], default, is_argument))
    return found


def _verb(name: str, command: Any) -> str:
    """Heading, usage, help, arguments and options of one command."""
    parameters = _parameters(command)
    arguments = [one for one in parameters if one.is_argument]
    options = [one for one in parameters if not one.is_argument]
    usage = " ".join([name, *map(_usage, arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"\n## `{name}`", f"    {usage}", *_paragraphs(command.help)]
    if arguments:
        parts.append(
            table(("argument", "meaning"), [(f"`{_usage(one)}`", escaped(one.help or "")) for one in arguments])
        )
    if options:
        rows = [(_names(one), _default(one), escaped(one.help or "")) for one in options]
        parts.append(table(("option", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _usage(argument: _Parameter) -> str:
    """As it stands in the usage line: `SCANS...`, `[SCAN]`."""
    word = f"{argument.spellings[0]}{'...' if argument.several else ''}"
    return word if argument.required else f"[{word}]"


def _names(option: _Parameter) -> str:
    """Every spelling, and what kind of value follows."""
    spelled = ", ".join(f"`{one}`" for one in (*option.spellings, *option.negation))
    return f"{spelled} {kind}" if (kind := _kind(option.kind)) else spelled


def _kind(kind: Any) -> str:
    """In a word; nothing for a switch. Optional and repeatable values are what they hold."""
    inner = [one for one in get_args(kind) if one is not type(None)]
    if inner:
        return _kind(inner[0])
    return "" if kind is bool else {int: "number", float: "number", Path: "path"}.get(kind, "text")


def _default(option: _Parameter) -> str:
    """Required, a value, or nothing; and whether the option may be repeated."""
    words = ["required"] if option.required else []
    if option.negation and isinstance(option.default, bool):
        words.append(f"`{(option.spellings if option.default else option.negation)[0]}`")
    elif not option.required and option.default is not None and option.default is not False:
        words.append(f"`{option.default}`")
    return ", ".join([*words, *(["repeatable"] if option.several else [])])


def _paragraphs(text: str | None) -> list[str]:
    return [escaped(" ".join(part.split())) for part in (text or "").split("\n\n")]


def _first_line(text: str | None) -> str:
    return _paragraphs(text)[0]


def _anchor(name: str) -> str:
    """As Markdown makes it from the heading."""
    return name.replace(" ", "-")


if __name__ == "__main__":
    print(reference())
