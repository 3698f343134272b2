"""The commands that README.md and docs show, taken from their text, and what they mean to the real programs."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from nnssl_mae.cli import app, join_numbers

ROOT = Path(__file__).parents[2]
_PROGRAM = re.compile(r"^(nnssl-mae|nnUNetv2_\w+|torchrun|scripts/\w+\.sh)\b")
_FENCE = re.compile(r"^(```+)\s*(\w*)")


@dataclass(frozen=True)
class Command:
    """One command line of a page."""

    page: str
    """Relative to the repository, such as ``docs/scans.md``."""
    line: int
    """Of its first word, from 1."""
    words: tuple[str, ...]
    """As the shell would split them; variables are left as they are written."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    def value_of(self, *options: str) -> str | None:
        """What follows the first of these options that is given."""
        return next((self.words[i + 1] for i, word in enumerate(self.words[:-1]) if word in options), None)


def pages() -> list[Path]:
    """README.md and everything below docs, but for the usage lines that are generated from the verbs."""
    generated = ROOT / "docs" / "reference" / "cli.md"
    return [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page != generated)]


def commands_of(page: Path) -> list[Command]:
    """The commands in a page's blocks of code, fenced or indented."""
    name = page.relative_to(ROOT).as_posix()
    return [Command(name, line, words) for line, words in commands_in(page.read_text(encoding="utf-8"))]


def commands_in(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, words) of each command of ours or of nnU-Net's; a trailing backslash joins two lines."""
    pending, start = "", 0
    for number, line in _code_lines(text):
        start = start if pending else number
        joined = pending + line.strip()
        if joined.endswith("\\"):
            pending = f"{joined[:-1]} "
            continue
        pending = ""
        if _PROGRAM.match(joined):
            yield start, tuple(shlex.split(joined, comments=True))


def _code_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of what is shown as code; output and configuration files in fences of another language are not."""
    language: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence:
            language = None if language is not None else fence[2]
        elif language in ("bash", "sh", "") or (language is None and line.startswith("    ")):
            yield number, line


class NotAccepted(Exception):
    """The program would refuse the command."""


def our_verb(words: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """The verb that would run, and its values; nothing is run.

    Raises:
        NotAccepted: an option or verb that does not exist, a missing or surplus argument, or a value of another type.
    """
    command, rest = typer.main.get_command(app), join_numbers(list(words))
    while hasattr(command, "commands"):
        prefix = [] if rest[:1] and rest[0] in command.commands else _default_verb(command)
        rest = [*prefix, *rest]
        if not rest or rest[0] not in command.commands:
            raise NotAccepted(f"there is no verb {' '.join(rest[:1])}; there are {', '.join(command.commands)}")
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        with command.make_context("nnssl-mae", list(rest)) as context:
            return command, dict(context.params)
    except (typer.Exit, SystemExit) as error:
        raise NotAccepted(str(error)) from error
    except Exception as error:
        # click's own exceptions; typer brings its own copy of click, whose classes are not public
        if not hasattr(error, "format_message"):
            raise
        raise NotAccepted(error.format_message()) from error


def _default_verb(group: Any) -> list[str]:
    """``scan ROOT`` is short for ``scan folders ROOT``."""
    return ["folders"] if "folders" in group.commands else []


def stock_arguments(words: tuple[str, ...]) -> argparse.Namespace:
    """What a command of nnU-Net would make of its arguments, by its own parser; nothing is run.

    Raises:
        NotAccepted: no such program, or its parser refuses.
    """
    parser = _stock_parser(words[0])
    with mock.patch.object(argparse.ArgumentParser, "error", _refuse):
        return parser.parse_args(list(words[1:]))


def _refuse(_: argparse.ArgumentParser, message: str) -> None:
    raise NotAccepted(message)


class _Caught(Exception):
    """Ends a program where it would read its arguments."""


@cache
def _stock_parser(program: str) -> argparse.ArgumentParser:
    found = entry_points(group="console_scripts", name=program)
    if not found:
        raise NotAccepted(f"nnU-Net has no program {program}")
    parsers: list[argparse.ArgumentParser] = []
    with _catching(parsers):
        try:
            next(iter(found)).load()()
        except _Caught:
            return parsers[0]
    raise NotAccepted(f"{program} reads no arguments")


@contextmanager
def _catching(parsers: list[argparse.ArgumentParser]) -> Iterator[None]:
    def caught(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        parsers.append(parser)
        raise _Caught

    # parse_args calls parse_known_args, and some of nnU-Net's programs do so themselves.
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", caught):
        yield
