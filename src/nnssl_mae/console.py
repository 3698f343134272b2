"""Printing for people."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints as it is: names of files may look like rich's markup or emoji, and commands must not be wrapped."""
    console.print(text, style=style, soft_wrap=True, highlight=False, markup=False, emoji=False)
