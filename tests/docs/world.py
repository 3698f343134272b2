"""What a reader of the pages has before the first command, small enough to be trained in seconds.

Below one folder, in which every command of a page runs:

- ``data/scans``, ``data/openneuro``, ``data/clinic``, ``held_out_scans``, ``scan.nii.gz``: unlabelled scans of 3.5
  mm. One of the clinic has the voxels of a test image of dataset 4.
- ``raw/Dataset004_Tiny``, 25 labelled scans and 2 to predict, planned by nnU-Net; ``Dataset005_Tuning`` is its copy.
- ``preprocessed/Dataset900_Brains``, its run, and ``checkpoint_final.pth``: prepared and pre-trained by our commands.
- Models ``mae`` and ``scratch`` of dataset 4, fold 0, adapted and trained by the commands. The same two of dataset 5,
  and a stock model of both, are copies of these under the names that docs/evidence.md compares.
- ``downloads/s3d``, ``amaes_unet_xl.ckpt``, ``encoder_weights.safetensors``, a stock model of ``Dataset027_ACDC``,
  and ``openmind.pth`` for the hub: tiny networks with random weights in the form of each origin.
- ``mine.yaml``: the file that docs/recipes.md shows. ``my_study.yaml``: the file that docs/evidence.md shows, made
  small (:func:`small_study`).
- ``docs/study/small``: the committed scores of the small study; ``study_output/reference``, which only a GPU can
  make, holds the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import safetensors.torch
import torch
import yaml

from tests.checkpoints import files
from tests.conftest import TINY_RECIPE
from tests.docs.commands import ROOT
from tests.docs.walk import LABELLED, MODEL, PRETRAINING
from tests.end_to_end.shell import Shell
from tests.tiny_scans import tiny_scan

TUNING = "Dataset005_Tuning"
_STOCK = "nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres"
_REFERENCE = "study_output/reference/study/comparison/Dataset911_StudyBrains"


def shell_in(folder: Path) -> Shell:
    """Runs commands there, with one process in nnU-Net's pools: its imports take longer than its work."""
    shell = Shell(folder)
    shell.environment["nnUNet_def_n_proc"] = "1"
    return shell


def build(folder: Path) -> None:
    """Fills a folder; a minute or two, most of it by the real commands."""
    write_files(folder)
    train_models(shell_in(folder))
    name_models(folder)


def write_files(folder: Path) -> None:
    """All that no command has made."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
    write_scans(folder)
    for dataset in (LABELLED, TUNING):
        write_labelled(folder / "raw" / dataset)
    write_checkpoints(folder)
    (folder / "mine.yaml").write_text(yaml_of("docs/recipes.md", "# mine.yaml"))
    (folder / "my_study.yaml").write_text(yaml.safe_dump(small_study(), sort_keys=False))
    for target in ("docs/study/small", _REFERENCE):
        shutil.copytree(ROOT / "docs" / "study" / "small", folder / target)


# ---------------------------------------------------------------------- scans


def write_scans(folder: Path) -> None:
    """The folders of unlabelled scans, each with people of its own."""
    for number, (name, count) in enumerate({"data/scans": 8, "data/openneuro": 4, "data/clinic": 3}.items()):
        for index in range(count):
            subject = f"sub-{10 * number + index:02d}"
            write_scan(folder / name / subject / "anat" / f"{subject}_T1w.nii.gz", 10 * number + index)
    write_scan(folder / "data/clinic/sub-known/anat/sub-known_T1w.nii.gz", 200, is_cropped=True)
    for seed in range(50, 53):
        write_scan(folder / "held_out_scans" / f"sub-{seed}_T1w.nii.gz", seed)
    write_scan(folder / "scan.nii.gz", 60)


def write_scan(path: Path, seed: int, is_cropped: bool = False) -> None:
    """A whole head of 3.5 mm, or the voxels of a labelled scan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(_finer(tiny_scan(seed)[0], is_cropped), path)


def write_labelled(raw: Path) -> None:
    """A raw dataset of small volumes: sliding windows over whole ones would take most of the time."""
    for split, seeds in (("Tr", range(100, 125)), ("Ts", (200, 201))):
        for kind in ("images", "labels"):
            (raw / f"{kind}{split}").mkdir(parents=True)
        for seed in seeds:
            image, labels = (_finer(each, is_cropped=True) for each in tiny_scan(seed))
            nibabel.save(image, raw / f"images{split}" / f"case{seed}_0000.nii.gz")
            nibabel.save(labels, raw / f"labels{split}" / f"case{seed}.nii.gz")
    content = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "dark": 1, "bright": 2},
        "numTraining": 25, "file_ending": ".nii.gz",
    }  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(content))


def _finer(image: nibabel.Nifti1Image, is_cropped: bool) -> nibabel.Nifti1Image:
    """With voxels of 3.5 mm, because a rule of the pages takes what is below 4; cropped to 36x40x36 voxels."""
    data = np.asarray(image.dataobj)
    data = data[7:43, 9:49, 6:42] if is_cropped else data
    return nibabel.Nifti1Image(data, image.affine @ np.diag([3.5 / 4, 3.5 / 4, 3.5 / 4, 1]))


# ---------------------------------------------------------------------- checkpoints of other origins


def write_checkpoints(folder: Path) -> None:
    """A file of each origin, where the pages have it."""
    plan = files.with_configuration(files.adaptation_plan(), spacing_style="median", spacing=(4, 4, 4))
    files.write_nnssl(folder / "openmind.pth", plan)
    (folder / "downloads" / "s3d").mkdir(parents=True)
    files.write_s3d(folder / "downloads" / "s3d" / "checkpoint_final.pth", plan)
    torch.manual_seed(0)
    torch.save(files.lightning(files.amaes_weights(files.AmaesReference())), folder / "amaes_unet_xl.ckpt")
    network = files.stock_network("ResidualEncoderUNet", files.KWARGS)
    weights = {name: tensor.contiguous() for name, tensor in files.first_names(network).items()}
    safetensors.torch.save_file(weights, folder / "encoder_weights.safetensors")
    fold = folder / "results" / "Dataset027_ACDC" / "nnUNetTrainer__nnUNetResEncUNetLPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    scheme = {"normalization_schemes": ["ZScoreNormalization"]}
    files.write_nnunet(
        fold / "checkpoint_final.pth", network, files.nnunet_plans("ResidualEncoderUNet", files.KWARGS, **scheme)
    )


# ---------------------------------------------------------------------- files that the pages show


def yaml_of(page: str, first_line: str) -> str:
    """The block of YAML on a page that begins with this line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    start = text.index(f"```yaml\n{first_line}") + len("```yaml\n")
    return text[start : text.index("```", start)]


def small_study() -> dict[str, Any]:
    """The study of docs/evidence.md with one seed, one labelled scan and two epochs of two steps.

    Left out: the stock arm (it trains nnU-Net's own network, and no fewer than 250 steps) and the tuning of rates
    (three trainings for each arm), both of which tests/end_to_end/test_study.py runs; and the arm of a downloaded
    checkpoint, which other commands of the pages adapt and train.
    """
    study: dict[str, Any] = yaml.safe_load(yaml_of("docs/evidence.md", "name: mystudy"))
    del study["arms"]["stock"], study["arms"]["openmind"], study["tuning"]
    tiny = {f"{part}.{key}": value for part, values in TINY_RECIPE.items() if isinstance(values, dict)
            for key, value in values.items()}  # fmt: skip
    study["pretraining"] |= {"seeds": [0], "set": tiny | {"schedule.epochs": 1, "schedule.iterations": 2}}
    environment = {"nnUNet_n_proc_DA": 1, "nnUNet_def_n_proc": 1, "OMP_WAIT_POLICY": "PASSIVE"}
    small = {"labelled": [1], "repeats": 1, "seeds": [0], "epochs": 2, "iterations": 2, "device": "cpu", "processes": 2}
    return study | small | {"environment": environment}


# ---------------------------------------------------------------------- what the real commands make


def train_models(shell: Shell) -> None:
    """Dataset 900 and its run; dataset 4 planned; its models ``mae`` and ``scratch``."""
    (shell.folder / "tiny.yaml").write_text(yaml.safe_dump(TINY_RECIPE))
    shell("nnssl-mae", "prepare", "data/scans", "-d", 900, "-n", "Brains", "--recipe", "tiny.yaml", "-np", 2)
    shell("nnssl-mae", "pretrain", "-d", 900, "--device", "cpu")
    shutil.copy(shell.folder / PRETRAINING / "checkpoint_final.pth", shell.folder)
    shell("nnUNetv2_extract_fingerprint", "-d", 4, "-np", 2)
    shell("nnUNetv2_plan_experiment", "-d", 4, "-pl", "nnUNetPlannerResEncL")
    adapt = ("nnssl-mae", "adapt", "checkpoint_final.pth", "-d", 4, "--epochs", 2, "--iterations", 2)
    shell(*adapt, "-n", "mae")
    shell(*adapt, "-n", "scratch", "--from-scratch")
    shell("nnUNetv2_preprocess", "-d", 4, "-plans_name", "mae", "-c", "3d_fullres_mae", "-np", 2)
    for plans in ("mae", "scratch"):
        shell("nnUNetv2_train", 4, "3d_fullres_mae", 0, "-tr", "nnUNetTrainerMAEFinetune", "-p", plans,
              "-device", "cpu")  # fmt: skip


def name_models(folder: Path) -> None:
    """Copies the models to the names of other arms, and of dataset 5."""
    results, preprocessed = folder / "results", folder / "preprocessed"
    stock = results / LABELLED / _STOCK
    shutil.copytree(folder / MODEL.replace("__mae__", "__scratch__"), stock)
    _rename_plans(stock, "scratch", "nnUNetResEncUNetMPlans")
    for place in (results, preprocessed):
        shutil.copytree(place / LABELLED, place / TUNING)
        _rename_plans(place / TUNING, LABELLED, TUNING)


def _rename_plans(folder: Path, old: str, new: str) -> None:
    """In plans, which say whose they are."""
    for path in folder.rglob("*.json"):
        text = path.read_text()
        if f'_name": "{old}"' in text:
            path.write_text(text.replace(f'_name": "{old}"', f'_name": "{new}"'))
