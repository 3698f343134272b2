"""``cite``: what to cite, as BibTeX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnssl_mae.cli.app import app
from nnssl_mae.errors import UserError


@app.command()
def cite(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE",
            help="Recipes of pre-training or fine-tuning, shipped ones or YAML files, or checkpoints (a file, a "
            "folder, or hf://owner/name).",
        ),
    ],
) -> None:
    """Print BibTeX of the papers to cite, nnU-Net's among them, each once: nnssl-mae cite s3d warmup >> refs.bib"""
    from nnssl_mae.recipes.citing import NNUNET, bibliography

    print(bibliography([citation for each in what for citation in _citations(each)] + [NNUNET]))


def _citations(what: str) -> tuple[str, ...]:
    """Of a recipe or a checkpoint.

    Raises:
        UserError: there is none of this name, it is not valid, or a checkpoint that names no paper.
    """
    from nnssl_mae.recipes.finetuning import finetuning_folder, load_any_recipe
    from nnssl_mae.recipes.reading import shipped_recipes

    # Names first: a folder of a run may be called like its recipe.
    is_name = what in (*shipped_recipes(), *shipped_recipes(finetuning_folder()))
    return load_any_recipe(what).citation if is_name or not _is_checkpoint(what) else _of_checkpoint(what)


def _is_checkpoint(what: str) -> bool:
    from nnssl_mae.checkpoints.hub import is_hub
    from nnssl_mae.checkpoints.locate import ENDINGS

    path = Path(what)
    return is_hub(what) or path.suffix in ENDINGS or path.is_dir()


def _of_checkpoint(where: str) -> tuple[str, ...]:
    from nnssl_mae.checkpoints.read import read_checkpoint

    citations = read_checkpoint(where).origin.citations
    if not citations:
        raise UserError(
            f"The checkpoint {where} names no paper to cite; name the recipe that it was trained by instead, "
            "such as: nnssl-mae cite mae"
        )
    return citations
