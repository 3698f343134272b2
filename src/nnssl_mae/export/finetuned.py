"""A fine-tuned model as the ``.zip`` that nnU-Net installs and predicts from, with a model card beside it.

nnU-Net's own exporter makes the zip. It takes files as they are, and those hold paths and names of cases; so it is
given a copy of the model without them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.model_sharing.model_export import export_pretrained_model
from rich.console import Console

from nnssl_mae.checkpoints.load import load_content
from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.export import scrub
from nnssl_mae.export.about import CardWishes
from nnssl_mae.export.finetuned_card import finetuned_card
from nnssl_mae.export.models import DAMAGED, Model, Staged, check_plans
from nnssl_mae.export.place import CARD, check_file, disk_in_words, picture, write_torch
from nnssl_mae.files import as_json, read_json, unique_word, whole_file
from nnssl_mae.folders import environment, silence
from nnssl_mae.plans import PLANS_BLOCK

_KEPT = ("network_weights", "trainer_name", "inference_allowed_mirroring_axes", "current_epoch")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_DATASET = re.compile(r"Dataset[0-9]{3}_[\w.-]+")


def export_model(model: Model, out: Path, console: Console, wishes: CardWishes, overwrite: bool = False) -> None:
    """Writes the zip, and the card beside it.

    Args:
        model: from :func:`find_model`.
        out: ends in ``.zip``, or that is added; the card is ``<name>.README.md`` beside it.

    Raises:
        UserError: a damaged model, or ``out`` cannot be written; then neither file is there.
    """
    out = out if out.suffix == ".zip" else out.with_name(f"{out.name}.zip")
    card = out.with_name(f"{out.stem}.{CARD}")
    if out.absolute().is_relative_to(model.folder):
        raise UserError(f"{out} is inside the model's folder; write the export to another place")
    for file in (out, card):
        check_file(file, overwrite)
    if wishes.preview is not None:
        raise UserError("--preview is for the cards of pre-trained networks; leave it out for a fine-tuned model")
    with disk_in_words(out), _beside(out) as work:
        staged = _stage(model, work)
        text = finetuned_card(model, staged, out, wishes)
        with whole_file(out) as zipped:
            _zip(staged, zipped)
        with whole_file(card) as written:
            written.write_text(text, encoding="utf-8")
    say(console, f"Wrote {out} (folds {', '.join(model.folds)}) and {card}: read it before you give them away.")
    if model.left_out:
        say(console, f"Left out: {', '.join(model.left_out)}, which nnU-Net would not take for folds.")
    if any(model.folder.glob("crossval_results_folds_*/postprocessing.pkl")):
        say(console, "Left out: postprocessing.pkl, which nnU-Net would unpickle; pass it on only to who trusts you.")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.{unique_word()}.tmp")
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# ---------------------------------------------------------------------- a copy without names


def _stage(model: Model, work: Path) -> Staged:
    plans = scrub.plans(model.plans)
    staged: Staged | None = None
    for fold in model.folds:
        source = model.fold_folder(fold)
        content = load_content(source / model.checkpoint, str(source / model.checkpoint))
        exported = _exported(content, source / model.checkpoint)
        if staged is None:
            staged = _named(model, plans, exported, work)
            _make(staged.folder, work)
        summary = scrub.summary(read_json(source / "validation" / "summary.json", DAMAGED))
        target = staged.folder / f"fold_{fold}"
        (target / "validation").mkdir(parents=True)
        write_torch(exported, target / model.checkpoint)
        (target / "progress.png").write_bytes(picture(source / "progress.png"))
        (target / "validation" / "summary.json").write_bytes(as_json(summary))
        staged.dice.update(_dice(fold, summary))
    assert staged is not None
    fingerprint = model.folder / "dataset_fingerprint.json"
    described = {
        "plans": plans,
        "dataset": scrub.dataset(model.dataset),
        "dataset_fingerprint": scrub.fingerprint(read_json(fingerprint, DAMAGED) if fingerprint.is_file() else {}),
    }
    for name, content in described.items():
        (staged.folder / f"{name}.json").write_bytes(as_json(content))
    return staged


def _exported(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What prediction and ``-pretrained_weights`` read of a checkpoint; no optimiser, no log."""
    started_with = content.get("init_args")
    missing = [key for key in ("network_weights", "trainer_name") if key not in content]
    if missing or not isinstance(started_with, dict) or "configuration" not in started_with:
        raise UserError(f"{file} is not a checkpoint of nnU-Net ({', '.join(missing) or 'init_args'}); {DAMAGED}")
    arguments = {key: started_with[key] for key in ("configuration", "fold") if key in started_with}
    if isinstance(started_with.get("plans"), dict):
        check_plans(started_with["plans"], str(file))
        arguments["plans"] = scrub.plans(started_with["plans"])
    if isinstance(started_with.get("dataset_json"), dict):
        arguments["dataset_json"] = scrub.dataset(started_with["dataset_json"])
    exported = {key: content[key] for key in _KEPT if key in content} | {"init_args": arguments}
    block = content.get(PLANS_BLOCK)
    return exported | ({PLANS_BLOCK: scrub.our_block(block)} if isinstance(block, dict) else {})


def _named(model: Model, plans: Mapping[str, Any], exported: Mapping[str, Any], work: Path) -> Staged:
    """The names that make nnU-Net's folders: those of the folder, or where it was renamed those that were trained.

    Raises:
        UserError: a name that nnU-Net cannot have given, such as one that leads to another folder.
    """
    dataset = model.folder.parent.name
    if not _DATASET.fullmatch(dataset):
        dataset = str(plans.get("dataset_name"))
    configuration = str(exported["init_args"]["configuration"])
    block = plans["configurations"].get(configuration, {}).get(PLANS_BLOCK, {})
    names = model.folder.name.split("__")
    if len(names) != 3:
        names = [
            "nnUNetTrainerMAEFinetune" if block else str(exported["trainer_name"]),
            str(plans.get("plans_name")),
            configuration,
        ]
    trainer, plans_name, configuration = names
    _check_names(model, dataset, names)
    return Staged(
        results=work / "results",
        dataset=dataset,
        trainer=trainer,
        plans=plans_name,
        configuration=configuration,
        folds=model.folds,
        checkpoint=model.checkpoint,
        block=block,
        dice={},
        trainer_to_predict=str(exported["trainer_name"]),
    )


def _check_names(model: Model, dataset: str, names: Iterable[str]) -> None:
    """The names become folders here and in the zip, and the model's folder may be anybody's."""
    if not _DATASET.fullmatch(dataset) or ".." in dataset:
        raise UserError(
            f"{model.folder} belongs to a dataset {dataset[:80]!r}, which is no name of nnU-Net's; put the model's "
            "folder into one that is called like the dataset, such as Dataset001_Name"
        )
    for kind, name in zip(("trainer", "plans", "configuration"), names, strict=True):
        if not _NAME.fullmatch(name) or ".." in name or "__" in name:
            raise UserError(
                f"{model.folder} has a {kind} {name[:80]!r}, which is no name of nnU-Net's; call the model's folder "
                "TRAINER__PLANS__CONFIGURATION, as nnU-Net does"
            )


def _make(folder: Path, work: Path) -> None:
    if not folder.resolve().is_relative_to(work.resolve()):
        raise UserError(f"{folder} would be outside the export; {DAMAGED}")
    folder.mkdir(parents=True)


def _dice(fold: str, summary: Mapping[str, Any]) -> dict[str, float]:
    means = summary.get("foreground_mean")
    dice = means.get("Dice") if isinstance(means, Mapping) else None
    return {fold: float(dice)} if isinstance(dice, int | float) and dice == dice else {}


def _zip(staged: Staged, file: Path) -> None:
    folds: Any = tuple(fold if fold == "all" else int(fold) for fold in staged.folds)
    with environment(nnUNet_results=str(staged.results)), silence():
        export_pretrained_model(
            staged.dataset,
            str(file),
            configurations=(staged.configuration,),
            trainer=staged.trainer,
            plans_identifier=staged.plans,
            folds=folds,
            strict=True,
            save_checkpoints=(staged.checkpoint,),
        )
