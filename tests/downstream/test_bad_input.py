"""Whatever is wrong gets a sentence, and nothing is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.names import one_name
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.downstream.adapt import adapt
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import ResumableError, UserError
from nnssl_mae.recipes.finetuning import finetune_recipe
from tests.downstream.checkpoints import architecture, made_checkpoint
from tests.downstream.conftest import Make
from tests.downstream.datasets import NAME, NUMBER, Made, change_json

STEM = "encoder.stem.convs.0.conv.weight"
BIAS = "encoder.stem.convs.0.norm.bias"
STOCK = "nnUNetResEncUNetLPlans.json"
Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


@dataclass
class Case:
    """What a user gives to ``adapt``, right until a test spoils it."""

    folders: Path
    checkpoint: Checkpoint | Path = field(default_factory=made_checkpoint)
    number: int = NUMBER
    name: str = "P"
    overwrite: bool = False
    wish: dict[str, Any] = field(default_factory=lambda: {"part": "encoder"})

    @property
    def dataset(self) -> Path:
        return self.folders / "preprocessed" / NAME

    def run(self) -> None:
        checkpoint = self.checkpoint
        if isinstance(checkpoint, Path):
            checkpoint = read_checkpoint(checkpoint)
        recipe = finetune_recipe(False, 4, 2)
        adapt(checkpoint, self.number, self.name, recipe, Wish(**self.wish), self.overwrite)

    def with_weights(self, change: Change) -> None:
        assert isinstance(self.checkpoint, Checkpoint)
        self.checkpoint = replace(self.checkpoint, weights=change(dict(self.checkpoint.weights)))

    def with_architecture(self, **changes: Any) -> None:
        assert isinstance(self.checkpoint, Checkpoint)
        kwargs = self.checkpoint.architecture["arch_kwargs"] | changes
        changed = {**self.checkpoint.architecture, "arch_kwargs": kwargs}
        self.checkpoint = replace(self.checkpoint, architecture=changed)

    def file(self, content: Any) -> None:
        """A checkpoint file with this content."""
        self.checkpoint = self.folders / "checkpoint_final.pth"
        if isinstance(content, bytes):
            self.checkpoint.write_bytes(content)
        else:
            torch.save(content, self.checkpoint)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile_was_here",)


def everything(folder: Path) -> dict[str, bytes | None]:
    """All names below a folder, with the content of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refuse(case: Case, sentence: str) -> UserError:
    before = everything(case.folders)
    with pytest.raises(UserError, match=sentence) as caught:
        case.run()
    assert everything(case.folders) == before
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and 20 < len(text) < 900
    return caught.value


@pytest.fixture
def case(make: Make, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    make()
    monkeypatch.chdir(nnunet_folders)  # where a hostile file would leave its trace
    return Case(nnunet_folders)


def test_nothing_is_wrong_with_the_case_itself(case: Case) -> None:
    case.run()
    assert (case.dataset / "P.json").is_file()


FILES = {
    "missing": (lambda case: setattr(case, "checkpoint", case.folders / "no.pth"), "no.pth"),
    "empty folder": (lambda case: setattr(case, "checkpoint", case.folders / "results"), "results"),
    "empty": (lambda case: case.file(b""), "checkpoint_final.pth"),
    "text": (lambda case: case.file(b"<html>404</html>"), "checkpoint_final.pth"),
    "a list": (lambda case: case.file([1, 2]), "checkpoint_final.pth"),
    "wrong keys": (lambda case: case.file({"epoch": 3, "optimizer": {}}), "checkpoint_final.pth"),
    "no weights": (lambda case: case.file({"network_weights": {}}), "checkpoint_final.pth"),
    "words for weights": (lambda case: case.file({"network_weights": {STEM: "heavy"}}), "checkpoint_final.pth"),
    "hostile": (lambda case: case.file({"network_weights": Hostile()}), "checkpoint_final.pth.* code"),
    "no plan": (
        lambda case: case.file({"network_weights": {STEM: torch.zeros(4, 1, 3, 3, 3)}, "spark_weights": {}}),
        "adaptation_plan.json",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_checkpoints(case: Case, name: str) -> None:
    spoil, sentence = FILES[name]
    spoil(case)
    refuse(case, sentence)


def test_a_truncated_checkpoint(case: Case) -> None:
    case.file({"network_weights": dict(made_checkpoint().weights)})
    assert isinstance(case.checkpoint, Path)
    content = case.checkpoint.read_bytes()
    case.checkpoint.write_bytes(content[: len(content) // 2])
    refuse(case, "checkpoint_final.pth")


def without_skips(weights: Weights) -> Weights:
    return {
        name: tensor[:, : tensor.shape[0]] if name.startswith("decoder.stages") and tensor.ndim == 5 else tensor
        for name, tensor in weights.items()
    }


def each(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Changes a tensor under all names that nnU-Net's networks have for it."""
    return lambda weights: {key: change(value) if one_name(key) == name else value for key, value in weights.items()}


WEIGHTS: dict[str, tuple[Change, str, str]] = {
    "nan": (each(STEM, lambda tensor: tensor * torch.nan), "encoder", "stem.* nan or infinite"),
    "infinite bias": (each(BIAS, lambda tensor: tensor / 0), "encoder", "stem.*norm.bias holds nan or infinite"),
    "nothing": (lambda weights: {}, "encoder", "holds no tensors"),
    "zero overlap": (
        lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()},
        "encoder",
        "names such as module.encoder",
    ),
    "another size": (
        lambda weights: {name: torch.zeros([2 * edge for edge in tensor.shape]) for name, tensor in weights.items()},
        "encoder",
        "Nothing of the checkpoint's encoder fits",
    ),
    "whole numbers": (each(STEM, torch.Tensor.int), "encoder", "int32"),
    "no decoder": (
        lambda weights: {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")},
        "encoder+decoder",
        "has no decoder",
    ),
    "decoder without skips": (without_skips, "encoder+decoder", "without skip connections"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_do_not_fit(case: Case, name: str) -> None:
    change, part, sentence = WEIGHTS[name]
    case.with_weights(change)
    case.wish["part"] = part
    refuse(case, sentence)


@pytest.mark.parametrize("part", ["encoder", None])
@pytest.mark.parametrize(
    "changes", [{"n_blocks_per_stage": [1, 1]}, {"features_per_stage": [4]}, {"norm_op_kwargs": {"eps": 1, "no": 2}}]
)
def test_networks_that_cannot_be_built(case: Case, part: str | None, changes: dict[str, Any]) -> None:
    case.with_architecture(**changes)
    case.wish["part"] = part
    refuse(case, "network that cannot be built")


def rewrite(name: str, content: str) -> Callable[[Case], None]:
    return lambda case: (case.dataset / name).write_text(content)


def change(name: str, **changes: Any) -> Callable[[Case], None]:
    return lambda case: change_json(case.dataset / name, **changes)


def change_3d(**changes: Any) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        plans = json.loads((case.dataset / STOCK).read_text())
        for key, value in changes.items():
            if value is ...:
                del plans["configurations"]["3d_fullres"][key]
            else:
                plans["configurations"]["3d_fullres"][key] = value
        (case.dataset / STOCK).write_text(json.dumps(plans))

    return apply


def only_2d(case: Case) -> None:
    plans = json.loads((case.dataset / STOCK).read_text())
    del plans["configurations"]["3d_fullres"]
    (case.dataset / STOCK).write_text(json.dumps(plans))


def unplanned_and_unlabelled(case: Case) -> None:
    (case.dataset / STOCK).unlink()
    (case.folders / "raw" / NAME / "dataset.json").unlink()


def unplanned(case: Case) -> None:
    (case.dataset / STOCK).unlink()
    (case.dataset / "dataset_fingerprint.json").unlink()
    (case.folders / "raw" / NAME / "dataset.json").write_text("{")


DATASETS = {
    "missing": (lambda case: setattr(case, "number", 77), "no dataset 77"),
    "twice": (lambda case: (case.folders / "raw" / "Dataset004_Other").mkdir(), "several datasets"),
    "not labelled": (unplanned_and_unlabelled, "no dataset.json in nnUNet_raw"),
    "damaged dataset.json": (rewrite("dataset.json", "{"), "dataset.json cannot be read .* run nnUNetv2_extract"),
    "damaged fingerprint": (rewrite("dataset_fingerprint.json", "[]"), "dataset_fingerprint.json holds no JSON object"),
    "damaged plans": (rewrite(STOCK, "no"), f"{STOCK} cannot be read"),
    "plans of another dataset": (change(STOCK, dataset_name="Dataset005_Other"), "holds the plans of Dataset005"),
    "plans of another version": (change(STOCK, transpose_forward=...), f"{STOCK} has no transpose_forward"),
    "older plans": (change_3d(architecture=..., UNet_class_name="PlainConvUNet"), f"{STOCK} has no architecture"),
    "damaged configurations": (change(STOCK, configurations=[1]), f"{STOCK} has damaged configurations"),
    "axes that are none": (change(STOCK, transpose_forward=[0, 1, 1]), r"transpose_forward \[0, 1, 1\]"),
    "no voxels": (change_3d(spacing=[0, 1, 1]), r"spacing \[0, 1, 1\]"),
    "patch of slices": (change_3d(patch_size=[64, 64]), r"patch_size \[64, 64\]"),
    "nnU-Net cannot plan it": (unplanned, "nnU-Net cannot plan .*--verify_dataset_integrity"),
    "single slices": (only_2d, "single slices"),
    "more channels than planned": (
        change("dataset.json", channel_names={"0": "T1", "1": "T2"}),
        "planned for 1 channels and .*dataset.json names 2",
    ),
    "no channels": (change("dataset.json", channel_names=...), "dataset.json names no channels"),
    "channels as words": (change("dataset.json", channel_names="T1"), "dataset.json names no channels"),
    "no file ending": (change("dataset.json", file_ending=...), "no file_ending"),
    "no labels": (change("dataset.json", labels=...), "labels that nnU-Net does not understand"),
    "background only": (change("dataset.json", labels={"background": 0}), "no labels besides the background"),
    "regions in no order": (
        change("dataset.json", labels={"background": 0, "whole": [1, 2], "core": 2}),
        "regions_class_order",
    ),
    "fingerprint of no case": (change("dataset_fingerprint.json", spacings=[], shapes_after_crop=[]), "every case"),
    "fingerprint with a hole": (change("dataset_fingerprint.json", spacings=...), "every case"),
    "fingerprint of nothing": (change("dataset_fingerprint.json", spacings=[[0, 1, 1]] * 4), "every case"),
    "fingerprint of words": (change("dataset_fingerprint.json", spacings=[["a", "b", "c"]] * 4), "every case"),
    "fingerprint of slices": (change("dataset_fingerprint.json", spacings=[[1, 1]] * 4), "every case"),
    "files nobody reads": (change("dataset.json", file_ending=".xyz"), r"\.xyz files"),
    "files that cannot be turned": (change("dataset.json", file_ending=".nrrd"), "--orientation asis"),
}  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_datasets(case: Case, name: str) -> None:
    spoil, sentence = DATASETS[name]
    spoil(case)
    refuse(case, sentence)


WISHES = {
    "mode": ({"mode": "median"}, "--mode median .*'like-pretrained', 'dataset', 'native'"),
    "part": ({"part": "decoder"}, "--transfer decoder"),
    "normalisation": ({"normalisation": "ct"}, "--normalisation ct"),
    "orientation": ({"orientation": "LPS"}, "--orientation LPS"),
    "patch of nothing": ({"patch": (0, 32, 32)}, "--patch 0 32 32"),
    "flat patch": ({"patch": (32, 32)}, "--patch 32 32"),
    "half a voxel": ({"patch": (32.5, 32, 32)}, "--patch 32.5 32 32"),
    "patch that is not divisible": ({"patch": (33, 32, 32)}, 'nearest that fits is --patch "32 32 32"'),
    "patch of one voxel below": ({"patch": (4, 4, 4)}, "nearest that fits"),
    "no batch": ({"batch": 0}, "--batch 0"),
    "no memory": ({"gpu_memory": 0.0}, "--gpu-memory 0.0"),
    "memory that is no number": ({"gpu_memory": float("nan")}, "--gpu-memory nan"),
    "too little memory": ({"gpu_memory": 1e-6}, "too little"),
    "channel map too short": ({"channel_map": ()}, "channel map"),
    "channel that is not there": ({"channel_map": (3,)}, "channel map '3'"),
    "control with an impossible map": ({"part": None, "channel_map": (3,)}, "channel map '3'"),
}


@pytest.mark.parametrize("name", WISHES)
def test_wishes_that_cannot_be_met(case: Case, name: str) -> None:
    wishes, sentence = WISHES[name]
    case.wish |= wishes
    refuse(case, sentence)


@pytest.mark.parametrize("mode", ["like-pretrained", "native"])
def test_bare_weights_without_mode_dataset(case: Case, mode: str) -> None:
    case.checkpoint = replace(made_checkpoint(), plans={}, data={})
    case.wish["mode"] = mode
    refuse(case, "does not tell how its scans were preprocessed.* --mode dataset")


def test_memory_of_a_network_that_nnunet_does_not_know(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnssl_mae.downstream.memory._REFERENCES", {})
    case.wish["gpu_memory"] = 8.0
    refuse(case, "nnU-Net cannot tell the memory of a ResidualEncoderUNet")


@pytest.mark.parametrize("name", ["a__b", "nnUNetPlans", "a/b", "../P", "", "dataset", "dataset_fingerprint", "Pläne"])
def test_names_that_are_impossible(case: Case, name: str) -> None:
    case.name = name
    refuse(case, "cannot be called")


def test_a_name_that_is_taken(case: Case) -> None:
    case.run()
    refuse(case, "P.json exists.* --overwrite")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"configurations": {"3d_fullres_mae": {}}})])
def test_plans_that_are_not_ours_are_not_overwritten(case: Case, content: str) -> None:
    (case.dataset / "P.json").write_text(content)
    case.overwrite = True
    refuse(case, "P.json")


def test_a_failed_overwrite_leaves_the_old_plans_as_they_were(case: Case) -> None:
    case.run()
    case.overwrite = True
    case.with_weights(each(STEM, lambda tensor: tensor * torch.nan))
    refuse(case, "nan or infinite")


# ---------------------------------------------------------------------- the machine


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; see the next test")
def test_a_folder_that_cannot_be_written_to(case: Case) -> None:
    case.dataset.chmod(0o500)
    try:
        refuse(case, "cannot be written .* change its permissions")
    finally:
        case.dataset.chmod(0o700)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.EACCES, UserError, f"{NAME} .*Permission denied.* change its permissions"),
        (errno.EROFS, UserError, "Read-only file system"),
        (errno.ENOSPC, ResumableError, f"The disk of .*{NAME} is full"),
    ],
)
def test_writing_that_fails_at_any_moment(
    case: Case, monkeypatch: pytest.MonkeyPatch, overwrite: bool, suffix: str, number: int, kind, sentence: str
) -> None:
    if overwrite:
        case.run()
        case.overwrite = True
        case.checkpoint = made_checkpoint(seed=4)
    write = Path.write_bytes

    def fail(path: Path, content: bytes) -> int:
        if f"{suffix}." in path.name:  # the temporary file beside it
            write(path, content[: len(content) // 2])
            raise OSError(number, os.strerror(number), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert type(refuse(case, sentence)) is kind


def test_folders_that_are_not_set(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    refuse(case, "nnUNet_preprocessed is not set")


def test_ct_pre_training_for_mr(make: Make, case: Case) -> None:
    shutil.rmtree(case.folders / "raw" / NAME)
    shutil.rmtree(case.dataset)
    make(Made(channels=("T1",)))
    case.checkpoint = made_checkpoint(architecture(), normalization_schemes=["CTNormalization"])
    refuse(case, "CT")
