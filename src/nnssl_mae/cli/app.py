"""The application that every verb registers with, and the options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

from nnssl_mae import __version__

app = typer.Typer(
    name="nnssl-mae",
    help="Masked-autoencoder pre-training for stock nnU-Net v2.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of options off in a terminal of 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dataset = Annotated[int, typer.Option("-d", "--dataset", help="nnU-Net dataset number, 1 to 999.")]
Device = Annotated[str, typer.Option("--device", help="cuda or cpu.")]
Workers = Annotated[int, typer.Option("-np", "--processes", help="Processes.", min=1)]


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
