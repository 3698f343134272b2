"""Model cards: ``README.md`` with the header that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from nnssl_mae.backbones import backbone_of, short_name
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.names import under_one_name
from nnssl_mae.export.about import About
from nnssl_mae.export.place import CHECKPOINT, PREVIEW, TENSORS
from nnssl_mae.recipes.citing import bibliography

UNKNOWN = "not stated"
_HUB_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense",
    "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0",
    "openrail",
)  # fmt: skip
_LONG_LIST = 12
_KINDS = {"nnformer": "window transformer", "primus": "vision transformer"}
Rows = Iterable[tuple[str, Any]]


def pretraining_card(
    checkpoint: Checkpoint, about: About, recipe: Mapping[str, Any] | None, form: str, picture: bool
) -> str:
    """The card of a pre-trained network.

    Args:
        checkpoint: with the weights that are exported.
        about: what is known besides.
        recipe: of ours, or None.
        form: ``nnssl``, ``safetensors`` or ``nnunet``.
        picture: whether one lies beside the card.
    """
    sections = [
        ("", _what(checkpoint, about)),
        ("Preview", f"![Reconstruction]({PREVIEW})" if picture else ""),
        ("Network", table(_network(checkpoint))),
        ("Training data", _data(about)),
        ("Preprocessing", table(_preprocessing(checkpoint)) + _beyond_stock(checkpoint)),
        ("Recipe", _recipe(recipe, about)),
        ("Compute", table(_compute(about, recipe))),
        ("Metrics", _metrics(about, _reconstructed(checkpoint))),
        ("How to use", _use(form)),
        ("Intended use", _INTENDED),
        ("Limits", _limits(checkpoint)),
        ("Licence", licence_text(about)),
        ("Citation", bibtex_block(checkpoint.origin.citations)),
    ]
    return card(about, "image-feature-extraction", ("self-supervised-learning", "pre-training"), sections)


def card(about: About, task: str, tags: Iterable[str], sections: Iterable[tuple[str, str]]) -> str:
    """Header, title and those sections that have a text."""
    header: dict[str, Any] = {}
    if about.licence:
        hub = _hub_licence(about.licence)
        header = {"license": hub} if hub in _HUB_LICENCES else {"license": "other", "license_name": hub}
    header |= {"library_name": "nnssl_mae", "pipeline_tag": task}
    header["tags"] = ["medical-imaging", "3d", "nnU-Net", *tags]
    lines = ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {about.name}"]
    for title, text in sections:
        if text:
            lines += ["", *([f"## {title}", ""] if title else []), text]
    return "\n".join(lines) + "\n"


def _hub_licence(licence: str) -> str:
    """A licence's name as the hub writes names: ``CC BY-SA 4.0`` is ``cc-by-sa-4.0``."""
    return re.sub(r"[^\w.]+|_+", "-", licence.lower()).strip("-.") or "unnamed"


# ---------------------------------------------------------------------- sections


def _what(checkpoint: Checkpoint, about: About) -> str:
    how = "Blocks of unlabelled 3D scans were hidden and reconstructed. " if _reconstructed(checkpoint) else ""
    kind = _KINDS.get(backbone_of(checkpoint.architecture).name, "U-Net")
    return (
        f"A 3D {kind}, pre-trained without labels ({checkpoint.origin.method or 'method ' + UNKNOWN}). {how}"
        "It segments nothing as it is: it is what fine-tuning on labelled scans starts from.\n\n"
        f"Exported by nnssl_mae from {_file(about.source)}." + _before(about)
    )


def _reconstructed(checkpoint: Checkpoint) -> bool:
    """Whether the pre-training was a masked autoencoder; nnssl trains by other methods too."""
    method = (checkpoint.origin.method or "").upper()
    return checkpoint.origin.format == "nnssl_mae" or "MAE" in method or "SPARK" in method


def _file(source: Mapping[str, Any]) -> str:
    label, form, digest = (str(source.get(key) or UNKNOWN).replace("`", "'") for key in ("label", "format", "sha256"))
    return f"`{label}` ({form}), SHA-256 `{digest}`"


def _before(about: About) -> str:
    if not about.exported_from:
        return ""
    return f" That file says that it was itself exported from {_file(about.exported_from)}."


def _blocks(checkpoint: Checkpoint) -> str:
    return "residual" if backbone_of(checkpoint.architecture).is_convolutional else "transformer"


def _network(checkpoint: Checkpoint) -> Rows:
    kwargs = checkpoint.architecture["arch_kwargs"]
    weights, _ = under_one_name(checkpoint.weights)
    sizes = {
        part: sum(tensor.numel() for name, tensor in weights.items() if name.startswith(part))
        for part in ("", "encoder.", "decoder.")
    }
    yield "class", short_name(checkpoint.architecture["network_class_name"])
    yield (
        "parameters",
        f"{_millions(sizes[''])} (encoder {_millions(sizes['encoder.'])}, decoder {_millions(sizes['decoder.'])})",
    )
    yield "input channels", checkpoint.channels
    for key, shown in (
        ("features_per_stage", "features of the stages"),
        ("n_blocks_per_stage", f"{_blocks(checkpoint)} blocks of the stages"),
        ("n_conv_per_stage", "convolutions of the stages"),
        ("n_conv_per_stage_decoder", "convolutions of the decoder's stages"),
        ("n_blocks_per_stage_decoder", "transformer blocks of the decoder's stages"),
        ("num_heads", "attention heads of the stages"),
        ("windows", "attention windows of the stages, tokens"),
        ("strides", "strides"),
        ("kernel_sizes", "kernels"),
    ):
        if key in kwargs:
            yield shown, kwargs[key]


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _data(about: About) -> str:
    numbers = ", ".join(f"{number:,} for {purpose}" for purpose, number in about.scans.items())
    return f"{about.data or 'Description: ' + UNKNOWN + '.'}\n\nScans: {numbers or UNKNOWN}."


def _preprocessing(checkpoint: Checkpoint) -> Rows:
    plans, data = checkpoint.plans, checkpoint.data
    reader = plans["image_reader_writer"]
    resampling = data["resampling_fn_data"]
    yield "orientation", "RAS (turned on reading)" if reader == "NibabelIOWithReorient" else "as stored in the file"
    yield "reader", reader
    yield "axis order", plans["transpose_forward"]
    yield "voxel spacing [mm]", "each scan's own" if resampling == "no_resampling_hack" else data["spacing"]
    yield "resampling", resampling
    yield "normalisation", ", ".join(data["normalization_schemes"])
    yield "statistics inside a mask only", data["use_mask_for_norm"]
    yield "patch [voxels]", data["patch_size"]


def _beyond_stock(checkpoint: Checkpoint) -> str:
    done, steps = checkpoint.beyond_stock, []
    if done.clip_high is not None:
        steps.append(f"intensities clipped from above at percentile {done.clip_high:g} of each scan")
    if done.clip_low is not None:
        steps.append(f"intensities clipped from below at percentile {done.clip_low:g} of each scan")
    if done.crop == "foreground":
        steps.append("scans cropped to head or body, found by brightness")
    if not steps:
        return "\n\nStock nnU-Net repeats every step that is known when it fine-tunes and predicts."
    return "\n\n**Stock nnU-Net cannot repeat when it fine-tunes and predicts:** " + "; ".join(steps) + "."


def _recipe(recipe: Mapping[str, Any] | None, about: About) -> str:
    if recipe is None:
        return f"Of the trainer `{about.source.get('method') or UNKNOWN}`; nothing more is in the file."
    rows = [("name", recipe.get("name")), ("summary", recipe.get("summary"))]
    for section, keys in _SHOWN.items():
        rows += [(f"{section}.{key}", recipe_value(recipe.get(section, {}).get(key))) for key in keys]
    whole = yaml.safe_dump(
        dict(recipe), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    ).strip()
    summary = "<details><summary>The whole recipe, as `nnssl-mae prepare --recipe` reads it</summary>"
    return f"{table(rows)}\n\n{summary}\n\n```yaml\n{whole}\n```\n\n</details>"


_SHOWN = {
    "masking": ("block_size", "ratio", "region"),
    "loss": ("region", "target_normalisation", "respect_exclusion"),
    "network": ("decoder", "skips", "sparse", "mask_tokens", "densify", "batch_size"),
    "augmentation": ("rotation_degrees", "scale", "mirror", "reversal"),
    "optimiser": ("name", "learning_rate", "weight_decay", "precision"),
    "schedule": ("epochs", "iterations", "warmup_epochs", "decay"),
}


def recipe_value(value: Any) -> Any:
    """As people write it in a recipe: None there is a choice, not something unknown."""
    return "none" if value is None else value


def _compute(about: About, recipe: Mapping[str, Any] | None) -> Rows:
    source = about.source
    epochs, steps = source.get("epochs"), source.get("steps")
    batch = None if recipe is None else recipe.get("network", {}).get("batch_size")
    yield "epochs done", epochs
    yield "optimiser steps", steps
    yield "patches a step", batch
    yield "hours in epochs", about.hours
    yield "hardware", None
    yield "nnssl_mae", source.get("version")


def _metrics(about: About, reconstructed: bool) -> str:
    if not about.metrics:
        return f"{UNKNOWN.capitalize()}."
    meaning = (
        "They say how well hidden blocks are reconstructed, on the recipe's own masks and intensities; they"
        if reconstructed
        else "They"
    )
    return table((name, f"{number:.4g}") for name, number in about.metrics.items()) + (
        f"\n\nOf the last epoch. {meaning} do not say how well a fine-tuned model segments."
    )


def _use(form: str) -> str:
    lines = [
        "```bash",
        "nnssl-mae inspect THIS_FOLDER -d DATASET      # what of it a labelled nnU-Net dataset would get",
        "nnssl-mae adapt THIS_FOLDER -d DATASET        # writes plans and weights to start from, prints what is next",
        "nnssl-mae adapt THIS_FOLDER -d DATASET --from-scratch    # the fair control",
        "```",
        "",
        "With nnssl_mae installed. `THIS_FOLDER` is a folder with the files beside this card, or `hf://owner/name`.",
    ]
    if form == "nnunet":
        lines += [
            "",
            "With stock nnU-Net, for plans with this very network:",
            "",
            "```bash",
            f"nnUNetv2_train DATASET CONFIGURATION FOLD -p PLANS -pretrained_weights {CHECKPOINT}",
            "```",
            "",
            "Stock nnU-Net says nothing of spacing, intensities and orientation, which must be as in the table above; "
            "it also unpickles the file, which can run code: do that with files of people whom you trust.",
        ]
    if form == "nnssl":
        lines += ["", f"`{CHECKPOINT}` has the form that nnssl and nnU-Net's loader of nnssl checkpoints read."]
    if form == "safetensors":
        lines += [
            "",
            f"`{TENSORS}` can hold no code; its metadata hold what `adaptation_plan.json` says, and the recipe.",
        ]
    return "\n".join(lines)


_INTENDED = (
    "Research: as the start of fine-tuning a segmentation network on labelled scans. Compare with a control from "
    "scratch on your own data before relying on it. Not a medical device, and not for decisions about patients."
)


def _limits(checkpoint: Checkpoint) -> str:
    limits = [
        "Scans unlike the training data (another modality, body region, contrast, field strength or age) may gain "
        "nothing or lose.",
        "Data whose voxels are much finer than the spacing above lose detail when they are resampled to it; "
        "`nnssl-mae adapt --mode dataset` keeps theirs.",
        "Another orientation, axis order or normalisation than above costs the benefit without any warning in stock "
        "nnU-Net.",
        "A network can keep traces of what it was trained on. Ask whoever answers for the data before sharing weights.",
    ]
    if not backbone_of(checkpoint.architecture).is_stock:
        limits.insert(
            0, "The network is not nnU-Net's own: models made from it predict only where nnssl_mae is installed."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def licence_text(about: About) -> str:
    return f"Of these weights: {about.licence or UNKNOWN}. The program nnssl_mae is under Apache-2.0."


def bibtex_block(citations: Sequence[str]) -> str:
    entries = bibliography(citations)
    return f"```bibtex\n{entries}\n```" if entries else f"{UNKNOWN.capitalize()}."


def table(rows: Rows) -> str:
    lines = ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows)]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, list | tuple):
        return _list(value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def _list(values: Sequence[Any]) -> str:
    parts = ["x".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in values]
    shown = parts[:_LONG_LIST] + (["..."] if len(parts) > _LONG_LIST else [])
    return ", ".join(shown)
