"""Checkpoints to export, and looking for words in whatever was exported."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nnssl_mae.checkpoints.names import under_one_name
from nnssl_mae.checkpoints.read import Checkpoint
from nnssl_mae.export.pretraining import CardWishes, Form, export_checkpoint
from nnssl_mae.networks.pretraining import pretraining_network
from nnssl_mae.recipes.pretraining import Recipe
from tests.checkpoints.files import tiny_recipe, write_own
from tests.networks.architectures import architecture

OPENMIND = "Wald et al. 2025, An OpenMind for 3D medical vision self-supervised learning, arXiv:2412.17041"
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "s3d": {"network": {"sparse": True, "mask_tokens": True, "densify": True}},
    "amaes": {"network": {"decoder": "light", "skips": False}, "data": {"clip_percentile": 99.0}},
    "token": {"masking": {"hidden_value": "token"}},
}


def recipe(kind: str) -> Recipe:
    """A tiny recipe of each kind of network."""
    return tiny_recipe(**RECIPES[kind])


def own(folder: Path, kind: str = "plain", **changes: Any) -> Path:
    """A checkpoint of ours as the trainer leaves it; top keys can be given."""
    path = folder / "checkpoint_final.pth"
    write_own(path, recipe(kind))
    content = torch.load(path, weights_only=True)
    epochs = {"epoch_start_timestamps": [0.0, 1800.0], "epoch_end_timestamps": [1800.0, 3600.0]}
    content |= {
        "optimizer_state": {"state": {}},
        "grad_scaler_state": None,
        "logging": {"val_losses": [0.9, 0.25], "psnr": [1.0, 21.5], "ssim": [0.1, 0.75], "r2": [0.0, 0.5], **epochs},
        "init_args": {"fold": "all"},
        "trainer_name": "nnUNetTrainerMAE",
        "citations": [OPENMIND],
    }
    torch.save(content | changes, path)
    return path


def own_amaes_unet(folder: Path) -> Path:
    """A checkpoint of ours with AMAES's own network."""
    network = architecture("amaes_unet", depth=2)
    light = recipe("amaes")
    torch.manual_seed(0)
    weights = pretraining_network(network, 1, light.network, "zero").state_dict()
    path = own(folder, "amaes", network_weights=weights)
    content = torch.load(path, weights_only=True)
    content["nnssl_adaptation_plan"]["architecture_plans"] = {
        "arch_class_name": "AmaesUNet",
        "arch_kwargs": network["arch_kwargs"],
        "arch_kwargs_requiring_import": network["_kw_requires_import"],
    }
    torch.save(content, path)
    return path


def export(path: Path, out: Path, form: Form, overwrite: bool = False, **wishes: Any) -> str:
    """Exports; returns what was printed."""
    printed = io.StringIO()
    export_checkpoint(str(path), out, form, Console(file=printed), CardWishes(**wishes), overwrite)
    return printed.getvalue()


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    """Bit for bit, whatever number of names a tensor has."""
    first, second = under_one_name(one.weights)[0], under_one_name(other.weights)[0]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def all_bytes(place: Path) -> dict[str, bytes]:
    """Content and names of all files at a place, and of the files packed into them."""
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]
    found: dict[str, bytes] = {}
    for path in files:
        _unpack(path.name, path.read_bytes(), found)
    return found


def _unpack(name: str, content: bytes, found: dict[str, bytes]) -> None:
    found[name] = name.encode() + content
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            for inner in packed.namelist():
                _unpack(f"{name}/{inner}", packed.read(inner), found)
