"""The model card of a fine-tuned model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl_mae.export.about import About, CardWishes, check_wishes
from nnssl_mae.export.model_card import UNKNOWN, bibtex_block, card, licence_text, recipe_value, table
from nnssl_mae.export.models import Model, Staged


def finetuned_card(model: Model, staged: Staged, out: Path, wishes: CardWishes) -> str:
    """The card for a zip.

    Raises:
        UserError: a wish that cannot be in a card.
    """
    check_wishes(wishes)
    about = About(name=wishes.name or out.stem, data=wishes.data, licence=wishes.licence)
    configuration = model.plans["configurations"].get(staged.configuration, {})
    recipe, origin = staged.block.get("recipe") or {}, (staged.block.get("initialisation") or {}).get("origin") or {}
    citations = list(dict.fromkeys([*(recipe.get("citation") or ()), *(origin.get("citations") or ())]))
    sections = [
        ("", _what(staged)),
        ("Input and output", _input(model)),
        ("Training data", _data(model, about)),
        ("Network and preprocessing", table(_network(model.plans, configuration))),
        ("Where training started", _start(staged, origin)),
        ("Training", _training(recipe)),
        ("Metrics", _metrics(staged)),
        ("How to use", _use(staged, out)),
        ("Intended use", _INTENDED),
        ("Limits", _limits(staged, configuration)),
        ("Licence", licence_text(about)),
        ("Citation", bibtex_block(citations)),
    ]
    return card(about, "image-segmentation", ("semantic-segmentation",), sections)


def _what(staged: Staged) -> str:
    return (
        f"A 3D segmentation model of nnU-Net v2 (`{staged.dataset}`, folds {', '.join(staged.folds)}), for "
        "`nnUNetv2_install_pretrained_model_from_zip`."
    )


def _input(model: Model) -> str:
    channels = model.dataset.get("channel_names") or model.dataset.get("modality") or {}
    rows = [(f"channel {number}", name) for number, name in channels.items()]
    rows += [(f"label {name}", value) for name, value in (model.dataset.get("labels") or {}).items()]
    return table([*rows, ("files", model.dataset.get("file_ending"))])


def _data(model: Model, about: About) -> str:
    number = model.dataset.get("numTraining")
    return f"{about.data or f'Description: {UNKNOWN}.'}\n\nLabelled cases: {number if number else UNKNOWN}."


def _network(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[tuple[str, Any]]:
    architecture = configuration.get("architecture") or {}
    kwargs = architecture.get("arch_kwargs") or {}
    return [
        ("network", str(architecture.get("network_class_name", UNKNOWN)).rsplit(".", 1)[-1]),
        ("features of the stages", kwargs.get("features_per_stage")),
        ("patch [voxels]", configuration.get("patch_size")),
        ("patches a step", configuration.get("batch_size")),
        ("voxel spacing [mm]", configuration.get("spacing")),
        ("normalisation", configuration.get("normalization_schemes")),
        ("reader", plans.get("image_reader_writer")),
    ]


def _start(staged: Staged, origin: Mapping[str, Any]) -> str:
    if not staged.block:
        return f"{UNKNOWN.capitalize()}: the plans are nnU-Net's own."
    initialisation = staged.block.get("initialisation")
    if not initialisation:
        return "From random weights."
    return table(
        [
            ("transferred", initialisation.get("transfer")),
            ("from", origin.get("label")),
            ("whose form", origin.get("format")),
            ("pre-training", origin.get("method")),
            ("epochs of it", origin.get("epochs")),
            ("SHA-256", origin.get("sha256")),
            ("licence of those weights", origin.get("licence")),
        ]
    )


def _training(recipe: Mapping[str, Any]) -> str:
    if not recipe:
        return "As nnU-Net trains."
    return table(
        [(key, recipe_value(value)) for key, value in recipe.items() if key != "citation"] + [("hardware", None)]
    )


def _metrics(staged: Staged) -> str:
    if not staged.dice:
        return f"{UNKNOWN.capitalize()}."
    rows = [(f"fold {fold}", f"{dice:.4f}") for fold, dice in staged.dice.items()]
    text = table([("", "mean foreground Dice"), *rows])
    if "all" in staged.dice:
        text += "\n\nFold `all` validates on cases that it was trained on."
    return text + "\n\nOf nnU-Net's validation within the training cases, not of an independent test."


def _use(staged: Staged, out: Path) -> str:
    chosen = "" if staged.checkpoint == "checkpoint_final.pth" else f" -chk {staged.checkpoint}"
    return "\n".join(
        [
            "```bash",
            f"nnUNetv2_install_pretrained_model_from_zip {out.name}",
            f"nnUNetv2_predict -d {staged.dataset} -i INPUT -o OUTPUT -c {staged.configuration} -tr {staged.trainer} "
            f"-p {staged.plans} -f {' '.join(staged.folds)}{chosen}",
            "```",
            "",
            "nnU-Net unpickles the checkpoints in it, which can run code: install models of people whom you trust. "
            "The optimiser's state is not in it, so training cannot be continued.",
        ]
    )


_INTENDED = "Research. Not a medical device, and not for decisions about patients."


def _limits(staged: Staged, configuration: Mapping[str, Any]) -> str:
    limits = [
        "Scans unlike the training data (scanner, contrast, region, resolution, population) may be segmented badly "
        "without any warning.",
        "A network can keep traces of what it was trained on. Ask whoever answers for the data before sharing it.",
    ]
    network = str((configuration.get("architecture") or {}).get("network_class_name", ""))
    if network.startswith("nnssl_mae."):
        limits.insert(0, "The network is not nnU-Net's own: it predicts only where nnssl_mae is installed.")
    elif staged.trainer_to_predict != "nnUNetTrainer":
        limits.insert(0, f"It predicts only where nnU-Net finds the trainer `{staged.trainer_to_predict}`.")
    return "\n".join(f"- {limit}" for limit in limits)
