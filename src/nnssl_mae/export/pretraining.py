"""``nnssl-mae export``: a checkpoint in the form of nnssl, of stock nnU-Net or as safetensors, with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from rich.console import Console

from nnssl_mae.backbones import backbone_of
from nnssl_mae.checkpoints.adaptation_plan import PLANS_KEYS, make_adaptation_plan
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.hub import is_hub
from nnssl_mae.checkpoints.load import load_content
from nnssl_mae.checkpoints.locate import Source, locate
from nnssl_mae.checkpoints.names import under_one_name, with_aliases
from nnssl_mae.checkpoints.nnssl_primus import OUR_TRAINER, released_name, released_plan, released_weights
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.console import say
from nnssl_mae.errors import UserError
from nnssl_mae.export import about as card_facts
from nnssl_mae.export.about import About, CardWishes
from nnssl_mae.export.finetuned import export_model
from nnssl_mae.export.model_card import pretraining_card
from nnssl_mae.export.models import find_model
from nnssl_mae.export.place import (
    CARD,
    CHECKPOINT,
    PLAN,
    PREVIEW,
    TENSORS,
    check_folder,
    picture,
    whole_folder,
    write_torch,
)
from nnssl_mae.files import as_json
from nnssl_mae.networks.planned import network_shape
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.scans.preprocess import BeyondStock

__all__ = ["CardWishes", "Form", "export_checkpoint"]

Form = Literal["nnunet", "nnssl", "safetensors"]
_BLOCK = "nnssl_mae"
_FOREIGN = {
    "amaes_unet": "AMAES's U-Net with max pooling",
    "nnformer": "an nnFormer",
    "primus": "a Primus under the names of nnssl_mae",
}


def export_checkpoint(
    path: str, out: Path, form: Form, console: Console, card: CardWishes, overwrite: bool = False
) -> None:
    """Writes a checkpoint in a form for others; nothing in it names a scan, a subject or a machine.

    Args:
        path: whatever :func:`nnssl_mae.checkpoints.read.read_checkpoint` reads and says how its scans were
            preprocessed; or the folder of a fine-tuned model, or a checkpoint in it.
        out: the folder to write; for a fine-tuned model the ``.zip``.
        form: ``safetensors``, ``nnssl`` (its released form), or ``nnunet``: for stock ``-pretrained_weights``, and of a
            fine-tuned model for ``nnUNetv2_install_pretrained_model_from_zip``.
        console: for what was written.
        card: for the model card.
        overwrite: replace an export that is there.

    Raises:
        UserError: not readable, not possible in this form, or ``out`` cannot be written; then nothing is there.
    """
    model = find_model(path)
    if model is not None:
        if form != "nnunet":
            raise UserError(
                f"{path} is a fine-tuned model, which segments; --format {form} is for pre-trained networks: use "
                "--format nnunet, which gives a zip that nnU-Net installs"
            )
        export_model(model, out, console, card, overwrite)
        return
    source = locate(path)
    check_folder(out, None if is_hub(path) else source.file, overwrite)
    checkpoint = read_checkpoint(path)
    _check_pretraining(checkpoint, source, form)
    content = load_content(source.file, source.shown)
    del content["network_weights"]  # read already
    about = card_facts.about(checkpoint, content, source.file, out.resolve().name, card)
    _write(checkpoint, content, about, out, form, card)
    say(console, f"Wrote {out}: read its {CARD} before you give it away.")
    if about.licence is None:
        say(console, "The card says nothing of a licence, so nobody may use the weights; --licence names one.")


def _check_pretraining(checkpoint: Checkpoint, source: Source, form: Form) -> None:
    if checkpoint.origin.format == "nnU-Net":
        raise UserError(
            f"{source.shown} is a model that segments, not a pre-trained network; give its folder (with plans.json and "
            "dataset.json) and --format nnunet"
        )
    if checkpoint.origin.format == "AMAES":
        raise UserError(
            f"{source.shown} is AMAES's own file, which everybody can read as it is; give it away unchanged, or export "
            "what you trained with the recipe amaes"
        )
    if not checkpoint.is_preprocessing_known:
        raise UserError(
            f"{source.shown} does not say how its scans were preprocessed, and weights without that serve nobody; put "
            f"the {PLAN} that belongs to it beside it"
        )
    broken = [name for name, tensor in under_one_name(checkpoint.weights)[0].items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{source.shown} holds nan or infinite values ({broken[0]}); export an earlier checkpoint")
    _check_others_know_it(checkpoint, source, form)
    if form == "nnunet":
        _check_stock_takes_it(checkpoint, source)


def _check_others_know_it(checkpoint: Checkpoint, source: Source, form: Form) -> None:
    backbone = backbone_of(checkpoint.architecture)
    if backbone.is_stock or form == "safetensors":
        return
    instead = "use --format safetensors, and `nnssl-mae adapt` to fine-tune it"
    if form == "nnunet" or backbone.name != "primus":
        whose = "nnssl" if form == "nnssl" else "nnU-Net"
        raise UserError(f"{source.shown} holds {_FOREIGN[backbone.name]}, which {whose} does not know; {instead}")
    if released_name(checkpoint.architecture) is None:
        raise UserError(
            f"{source.shown} holds a Primus that is none of the sizes S, B, M and L with tokens of 8x8x8 voxels, so "
            f"nnssl has no name for it; {instead}"
        )
    if checkpoint.beyond_stock != BeyondStock():
        raise UserError(
            f"{source.shown} was trained on clipped or cropped scans, which nnssl's form of a Primus cannot say; "
            f"{instead}"
        )


def _check_stock_takes_it(checkpoint: Checkpoint, source: Source) -> None:
    """Stock ``-pretrained_weights`` wants every tensor of the network but its heads."""
    weights, _ = under_one_name(checkpoint.weights)
    network = network_shape(checkpoint.architecture, checkpoint.channels)
    wrong = [
        name
        for name, tensor in network.named_parameters()
        if ".seg_layers." not in name and (name not in weights or weights[name].shape != tensor.shape)
    ]
    if wrong:
        reason = "lacks tensors that stock nnU-Net wants"
        if all(name.startswith("decoder.") for name in wrong):
            reason = "has a decoder without skip connections, or none, and stock nnU-Net takes whole U-Nets only"
        raise UserError(
            f"{source.shown} {reason} ({wrong[0]}, {len(wrong)} in all); `nnssl-mae adapt` transfers what there is, "
            "and --format safetensors gives it to others"
        )


def _write(
    checkpoint: Checkpoint, content: Mapping[str, Any], about: About, out: Path, form: Form, wishes: CardWishes
) -> None:
    block = content.get(_BLOCK)
    block = block if checkpoint.origin.format == "nnssl_mae" else None  # the reader checked that of ours
    drawn = None if wishes.preview is None else picture(wishes.preview)
    exported = checkpoint if form == "safetensors" else _that_others_name(checkpoint)
    text = pretraining_card(exported, about, block["recipe"] if block else None, form, drawn is not None)
    plan = _plain(_adaptation_plan(checkpoint))
    renamed = released_name(checkpoint.architecture) if form == "nnssl" else None
    if renamed:
        plan = released_plan(plan, renamed)
    with whole_folder(out) as folder:
        if form == "safetensors":
            _write_safetensors(exported, plan, block, about, folder / TENSORS)
        else:
            torch_content = _torch_content(exported, plan, block, about)
            write_torch(_as_released(torch_content) if renamed else torch_content, folder / CHECKPOINT)
        (folder / PLAN).write_bytes(as_json(plan))
        _check_read_back(folder, exported, out)
        (folder / CARD).write_text(text, encoding="utf-8")
        if drawn is not None:
            (folder / PREVIEW).write_bytes(drawn)


def _check_read_back(folder: Path, exported: Checkpoint, out: Path) -> None:
    """An export that could not be read would be noticed by others, and late."""
    again = read_checkpoint(folder)
    one, other = (under_one_name(checkpoint.weights)[0] for checkpoint in (exported, again))
    same = one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    if not same or _comparable(exported) != _comparable(again):
        raise UserError(f"{out} was not written: read back, it was not what had been exported; try another disk")


def _comparable(checkpoint: Checkpoint) -> dict[str, Any]:
    """Its plan without what nnssl's form of a Primus does not say and nobody needs to use the weights."""
    plan = _plain(_adaptation_plan(checkpoint))
    arguments = plan["architecture_plans"]["arch_kwargs"]
    for unsaid in ("drop_path", "num_register_tokens"):  # the first is of a training, the weights tell the second
        arguments.pop(unsaid, None)
    plan["pretrain_plan"]["configurations"] = list(plan["pretrain_plan"]["configurations"].values())
    return plan


def _that_others_name(checkpoint: Checkpoint) -> Checkpoint:
    """Encoder and decoder: nnssl and nnU-Net know no names for what else a pre-training has.

    But nnssl does for the transformer that fills in dropped tokens, and for the token in their places.
    """
    parts = ["encoder.", "decoder."]
    if any(name.startswith("token_decoder.") for name in checkpoint.weights):
        parts += ["token_decoder.", "mask_tokens."]
    kept = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith(tuple(parts))}
    return replace(checkpoint, weights=kept)


def _as_released(content: Mapping[str, Any]) -> dict[str, Any]:
    """A Primus as nnssl's own files hold it. Our block stays out: it stands for files with our names."""
    renamed = released_weights(content["network_weights"])
    return {key: value for key, value in content.items() if key != _BLOCK} | {"network_weights": renamed}


def _adaptation_plan(checkpoint: Checkpoint) -> dict[str, Any]:
    """From what was understood, never copied from the file: other keys of it could name anything."""
    data, plans = checkpoint.data, checkpoint.plans
    ours = checkpoint.origin.format == "nnssl_mae"
    name = CONFIGURATION if ours else str(data.get("spacing_style") or "pretraining")
    configuration = {
        **data,
        "resampling_fn_seg": data["resampling_fn_mask"],
        "resampling_fn_seg_kwargs": data["resampling_fn_mask_kwargs"],
        "architecture": checkpoint.architecture,
    }
    unknown = {"original_median_spacing_after_transp": data["spacing"]}
    known = {key: plans.get(key, unknown.get(key, "unknown")) for key in PLANS_KEYS}
    return make_adaptation_plan(known | {"configurations": {name: configuration}}, name, checkpoint.channels)


def _plain(plan: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists for tuples, the same in every form."""
    result: dict[str, Any] = json.loads(json.dumps(plan))
    return result


def _torch_content(
    checkpoint: Checkpoint, plan: Mapping[str, Any], block: Mapping[str, Any] | None, about: About
) -> dict[str, Any]:
    """As nnssl releases checkpoints: no state of an optimiser, every tensor under all its names."""
    origin = checkpoint.origin
    (configuration,) = plan["pretrain_plan"]["configurations"]
    content: dict[str, Any] = {
        "network_weights": with_aliases(_copies(checkpoint.weights), checkpoint.architecture),
        "init_args": {"configuration_name": configuration},
        "trainer_name": OUR_TRAINER if block else (origin.method or "unknown"),
        "nnssl_adaptation_plan": plan,
        "citations": list(origin.citations),
        card_facts.KEY: about.as_json(),
    }
    if origin.epochs is not None:
        content["current_epoch"] = origin.epochs
    if about.licence is not None:
        content["licence"] = about.licence
    return content | ({_BLOCK: _our_block(block)} if block else {})


def _write_safetensors(
    checkpoint: Checkpoint, plan: Mapping[str, Any], block: Mapping[str, Any] | None, about: About, file: Path
) -> None:
    metadata = {
        "format": "pt",
        "nnssl_adaptation_plan": json.dumps(plan),
        "citations": json.dumps(list(checkpoint.origin.citations)),
        card_facts.KEY: json.dumps(about.as_json()),
    }
    if block:
        metadata[_BLOCK] = json.dumps(_our_block(block))
    else:
        metadata["trainer_name"] = checkpoint.origin.method or "unknown"
        metadata["current_epoch"] = json.dumps(checkpoint.origin.epochs)
    if about.licence is not None:
        metadata["licence"] = about.licence
    # Not save_file: what that writes only its owner may read.
    file.write_bytes(safetensors.torch.save(_copies(checkpoint.weights), metadata))


def _copies(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor once, with memory of its own: views would take their whole storage along."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in under_one_name(weights)[0].items()}


_BLOCK_KEYS = ("schema", "version", "torch", "recipe", "epochs_done", "validation_loss", "excluded_datasets")


def _our_block(block: Mapping[str, Any]) -> dict[str, Any]:
    return {key: block[key] for key in _BLOCK_KEYS if key in block}
