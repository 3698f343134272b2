"""What plain values (versions, folders, errors) mean: pure functions, tested with made-up values."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from nnssl_mae.torch_safety import corrupts_memory, runs_code

Level = Literal["ok", "warning", "problem"]

TESTED_NNUNET = ("2.8.1",)
MINIMUM_FREE_GB = 20.0
OUR_TRAINERS = ("nnUNetTrainerMAE", "nnUNetTrainerMAEFinetune")
EXT_TRAINER = "nnUNet_extTrainer"
PLUGIN_FOLDER = Path(__file__).resolve().parents[1] / "nnunet_plugin"

MATCH_TORCHVISION = (
    "Install both in one command, so that they fit each other:\n"
    "    pip uninstall -y torch torchvision\n"
    "    pip install torch torchvision\n"
    "For a CPU-only or a certain CUDA build, take the install command from PyTorch's web page: it names the "
    "same --index-url for both."
)
NMS_SYMPTOM = "RuntimeError: operator torchvision::nms does not exist"
EVERY_TRAINER_CRASHES = (
    "nnU-Net imports torchvision (through timm) when it searches for any trainer but its default one, so "
    "every `-tr` other than nnUNetTrainer crashes"
)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    ``advice`` says what to do (never empty unless ``level`` is "ok"). Its indented lines are commands;
    they are printed unbroken, so that they can be copied.
    """

    level: Level
    name: str
    value: str
    advice: str = ""


def judge_python(version: str) -> Finding:
    """Python 3.10 is the oldest that we and nnU-Net support."""
    if _version(version) < Version("3.10"):
        return Finding("problem", "Python", version, "Make a new environment with Python 3.10 or newer.")
    return Finding("ok", "Python", version)


def judge_torch(version: str | None, import_error: str | None = None) -> Finding:
    """``version`` is None where torch is not installed; ``import_error`` is the text of a failed import."""
    if version is None:
        advice = "Install it:\n    pip install torch torchvision"
        return Finding("problem", "torch", "not installed", advice)
    if import_error is not None:
        advice = f"It cannot be imported: {import_error}\n{MATCH_TORCHVISION}"
        return Finding("problem", "torch", version, advice)
    if runs_code(_version(version)):
        advice = (
            "Too old: below 2.6 a checkpoint can run a program although torch reads weights only "
            "(CVE-2025-32434). Install a newer one:\n    pip install --upgrade torch torchvision"
        )
        return Finding("problem", "torch", version, advice)
    if _version(version).release[:2] == (2, 9):
        advice = (
            "Known-bad version: fp16 3D convolutions are reported up to 4 times slower on torch 2.9, and "
            "nnunetv2 excludes it. Install a newer one:\n    pip install --upgrade torch torchvision"
        )
        return Finding("warning", "torch", version, advice)
    if corrupts_memory(_version(version)):
        advice = (
            "Below 2.10 a hostile .pth file can damage the memory of the process that reads it (CVE-2026-24747): "
            "read only safetensors, and .pth of people you trust, or install a newer one:\n"
            "    pip install --upgrade torch torchvision"
        )
        return Finding("warning", "torch", version, advice)
    return Finding("ok", "torch", version)


def judge_torchvision(
    torch_version: str | None,
    torchvision_version: str | None,
    torchvision_requires: str | None,
    import_error: str | None = None,
) -> Finding:
    """Does torchvision fit torch?

    Args:
        torch_version: the installed torch, with its build label if it has one ("2.13.0+cpu").
        torchvision_version: likewise; None where it is not installed.
        torchvision_requires: what it asks of torch itself, e.g. "torch==2.13.0" or "torch (>=2.14.0)".
        import_error: the text with which ``import torchvision`` failed; None if it worked.
    """
    if torchvision_version is None:
        advice = f"{EVERY_TRAINER_CRASHES}. {MATCH_TORCHVISION}"
        return Finding("problem", "torchvision", "not installed", advice)
    mismatch = _torchvision_mismatch(torch_version, torchvision_version, torchvision_requires)
    value = f"{torchvision_version}, {mismatch}" if mismatch else torchvision_version
    if import_error is not None:
        usual = f" (the usual symptom is `{NMS_SYMPTOM}`)" if NMS_SYMPTOM not in import_error else ""
        advice = (
            f"torchvision does not match torch: its import fails with `{import_error}`{usual}. "
            f"{EVERY_TRAINER_CRASHES}. {MATCH_TORCHVISION}"
        )
        return Finding("problem", "torchvision", value, advice)
    if mismatch:
        advice = (
            f"torchvision can be imported, but does not match torch: expect errors such as `{NMS_SYMPTOM}`. "
            f"{EVERY_TRAINER_CRASHES} when that happens. {MATCH_TORCHVISION}"
        )
        return Finding("warning", "torchvision", value, advice)
    return Finding("ok", "torchvision", value)


def judge_cuda(
    cuda_build: str | None, gpu_names: Sequence[str], driver_present: bool, query_error: str | None = None
) -> Finding:
    """``cuda_build`` is ``torch.version.cuda`` (None in a CPU-only torch). No GPU at all is fine."""
    build = f"torch built for CUDA {cuda_build}" if cuda_build else "torch built without CUDA"
    if query_error is not None:
        advice = f"Asking torch for the GPUs failed: {query_error}\nCheck the driver:\n    nvidia-smi"
        return Finding("problem", "CUDA", build, advice)
    if gpu_names:
        return Finding("ok", "CUDA", f"{build}; {_count_names(gpu_names)}")
    if not driver_present:
        note = "No GPU here: good for trying out, scanning and preparing; real training needs a GPU machine."
        return Finding("ok", "CUDA", f"not available ({build})", note)
    if cuda_build is None:
        advice = f"There is an NVIDIA driver, but torch cannot use it. {MATCH_TORCHVISION}"
    else:
        advice = (
            "There is an NVIDIA driver, but torch finds no GPU: the driver may be too old for this CUDA "
            "version, or CUDA_VISIBLE_DEVICES hides the GPUs. Compare with the CUDA version shown by:\n"
            "    nvidia-smi"
        )
    return Finding("warning", "CUDA", f"not available ({build})", advice)


def judge_cudnn(version: int | None, gpu_available: bool, query_error: str | None = None) -> Finding:
    """``version`` is ``torch.backends.cudnn.version()``, e.g. 91002 for 9.10.2; None where there is no cuDNN.

    bf16 3D convolutions of cuDNN 9.8-9.10: https://github.com/pytorch/pytorch/issues/163539
    """
    if query_error is not None:
        advice = f"torch cannot load its cuDNN: {query_error}\nAnother cuDNN may be found first: check "
        return Finding("problem", "cuDNN", "broken", f"{advice}LD_LIBRARY_PATH. {MATCH_TORCHVISION}")
    if version is None:
        if not gpu_available:
            return Finding("ok", "cuDNN", "none (not needed without a GPU)")
        return Finding("warning", "cuDNN", "none", f"3D convolutions are slow without it. {MATCH_TORCHVISION}")
    major, minor, patch = _cudnn_release(version)
    value = f"{major}.{minor}.{patch}"
    if not gpu_available:
        return Finding("ok", "cuDNN", f"{value} (not used without a GPU)")
    if (9, 8) <= (major, minor) <= (9, 10):
        advice = (
            "Known-bad version: bf16 3D convolutions are reported silently wrong on cuDNN 9.8 to 9.10. fp16 "
            "(nnU-Net's own choice) is not concerned: do not train in bf16 here, or install a newer torch:\n"
            "    pip install --upgrade torch torchvision"
        )
        return Finding("warning", "cuDNN", value, advice)
    return Finding("ok", "cuDNN", value)


def judge_nnunet(version: str | None) -> Finding:
    """We build on the inside of nnU-Net's trainer, so a version nobody has tried is worth a word."""
    install = f'\n    pip install "nnunetv2=={TESTED_NNUNET[-1]}"'
    if version is None:
        return Finding("problem", "nnunetv2", "not installed", f"Install it:{install}")
    if not Version("2.8.1") <= _version(version) < Version("3"):
        return Finding("problem", "nnunetv2", version, f"Not supported (2.8.1 or newer, below 3):{install}")
    if version not in TESTED_NNUNET:
        advice = f"Untested version (tested: {', '.join(TESTED_NNUNET)}). If something breaks, go back:{install}"
        return Finding("warning", "nnunetv2", version, advice)
    return Finding("ok", "nnunetv2", version)


def judge_batchgeneratorsv2(version: str | None) -> Finding:
    """0.3.2 is the oldest that nnunetv2 2.8.1 accepts."""
    install = 'Install a newer one:\n    pip install --upgrade "batchgeneratorsv2>=0.3.2"'
    if version is None:
        return Finding("problem", "batchgeneratorsv2", "not installed", install)
    if _version(version) < Version("0.3.2"):
        return Finding("problem", "batchgeneratorsv2", version, f"Too old for nnU-Net. {install}")
    return Finding("ok", "batchgeneratorsv2", version)


def judge_folder(variable: str, value: str | None) -> Finding:
    """One of nnU-Net's three folders: is the variable set, does the folder exist, can we write there?"""
    if not value:
        advice = f'Set it in your shell profile:\n    export {variable}="/path/to/{variable}"'
        return Finding("problem", variable, "not set", advice)
    folder = Path(value)
    if not folder.exists():
        advice = (
            "The folder does not exist. Correct the variable, mount the disk, or make the folder:\n"
            f"    mkdir -p {shlex.quote(value)}"
        )
        return Finding("problem", variable, value, advice)
    if not folder.is_dir():
        return Finding("problem", variable, value, "This is a file. Point the variable at a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return _unwritable(variable, value)
    return Finding("ok", variable, value)


def judge_free_disk(variable: str, free_bytes: int, minimum_gb: float = MINIMUM_FREE_GB) -> Finding:
    """Free space where ``variable`` points to; GB are 10^9 bytes."""
    name, free_gb = "free disk space", free_bytes / 1e9
    value = f"{free_gb:.1f} GB at {variable}"
    if free_gb < minimum_gb:
        advice = (
            f"Less than {minimum_gb:.0f} GB: preprocessing and checkpoints fill that quickly. Free some "
            f"space, or point {variable} at a larger disk."
        )
        return Finding("warning", name, value, advice)
    return Finding("ok", name, value)


def judge_registration(set_at_start: bool, environment: Mapping[str, str], plugin_folder: Path) -> Finding:
    """Does nnU-Net hear of our folder?

    Args:
        set_at_start: a new interpreter, started without ``nnUNet_extTrainer``, has our folder in it, so the
            ``.pth`` file was read.
        environment: the variables of this process.
        plugin_folder: our folder of re-exports.
    """
    if set_at_start:
        return Finding("ok", EXT_TRAINER, "set at every Python start by nnssl_mae_registration.pth")
    if names_folder(environment.get(EXT_TRAINER, ""), plugin_folder):
        return Finding("ok", EXT_TRAINER, "names our folder (exported by you; no .pth file is read here)")
    advice = (
        "Python reads no nnssl_mae_registration.pth here (normal after `pip install --target`, or with the "
        "package on PYTHONPATH only). Put this line into your shell profile:\n"
        f"    {export_line(environment, plugin_folder)}"
    )
    return Finding("problem", EXT_TRAINER, "does not name our folder", advice)


def judge_trainers(
    modules: Mapping[str, str], error: str | None, environment: Mapping[str, str], plugin_folder: Path
) -> Finding:
    """The result of nnU-Net's own look-up in a new interpreter.

    Args:
        modules: trainer name to the module its class comes from.
        error: the last line of what the look-up printed when it failed, else None.
    """
    name = "trainer search"
    # nnU-Net's "could not find" goes on with paths and advice which ours replaces.
    error = error and error.partition(" in nnunetv2.")[0]
    if error is not None and "torchvision" in error:
        advice = f"{EVERY_TRAINER_CRASHES}: `{error}`. Install torch and torchvision anew, together, as said above."
        return Finding("problem", name, "failed because of torchvision", advice)
    if error is not None and names_folder(environment.get(EXT_TRAINER, ""), plugin_folder):
        advice = (
            f"nnU-Net knows our folder, but cannot load the trainers: `{error}`. To see the whole message:\n"
            '    python -c "import nnssl_mae.training.mae_trainer, nnssl_mae.training.finetune_trainer"\n'
            "If that runs, a folder which stands before ours may be at fault: "
            f"{EXT_TRAINER}={environment[EXT_TRAINER]}"
        )
        return Finding("problem", name, "failed", advice)
    if error is not None:
        advice = (
            f"nnU-Net does not find our trainers: `{error}`. Put this line into your shell profile and try "
            f"again:\n    {export_line(environment, plugin_folder)}"
        )
        return Finding("problem", name, "failed", advice)
    strangers = {trainer: module for trainer, module in modules.items() if not module.startswith("nnssl_mae.")}
    if strangers:
        listed = ", ".join(f"{trainer} from {module}" for trainer, module in strangers.items())
        advice = f"Another class of the same name is found first ({listed}). Rename it, or take its folder out of "
        return Finding("warning", name, "finds somebody else's trainer", f"{advice}{EXT_TRAINER}.")
    return Finding("ok", name, "nnU-Net finds " + " and ".join(modules))


def export_line(environment: Mapping[str, str], plugin_folder: Path) -> str:
    """The shell line that does by hand what the ``.pth`` file does: append our folder, keep the user's."""
    entries = [entry for entry in environment.get(EXT_TRAINER, "").split(os.pathsep) if entry]
    if not names_folder(os.pathsep.join(entries), plugin_folder):
        entries.append(str(plugin_folder))
    return f'export {EXT_TRAINER}="{os.pathsep.join(entries)}"'


def verdict(findings: Sequence[Finding]) -> tuple[int, str]:
    """Exit code (0: all good or warnings only, 1: something is broken) and the closing sentence."""
    problems = dict.fromkeys(finding.name for finding in findings if finding.level == "problem")
    warnings = dict.fromkeys(finding.name for finding in findings if finding.level == "warning")
    if problems:
        return 1, f"Not ready. To repair: {', '.join(problems)}."
    if warnings:
        return 0, f"Ready, with warnings: {', '.join(warnings)}."
    return 0, "Ready: everything is in order."


def names_folder(value: str, folder: Path) -> bool:
    """Whether ``value`` (a list as in PATH) holds ``folder``, under whatever spelling or link."""
    return any(Path(entry).resolve() == folder.resolve() for entry in value.split(os.pathsep) if entry)


def _unwritable(variable: str, value: str) -> Finding:
    if variable == "nnUNet_raw":
        # Shared raw data is often read-only on purpose, and training never writes there.
        note = "Read-only: enough for training; adding datasets or images there needs write permission."
        return Finding("ok", variable, value, note)
    advice = "You may not write there. Ask for write permission, or point the variable at another folder."
    return Finding("problem", variable, value, advice)


def _torchvision_mismatch(
    torch_version: str | None, torchvision_version: str, torchvision_requires: str | None
) -> str | None:
    """Why the two do not fit, as the end of a sentence, or None."""
    if torch_version is None:
        return None
    if torchvision_requires is not None:
        try:
            requirement = Requirement(torchvision_requires)
        except InvalidRequirement:
            return f"with an unreadable requirement on torch: {torchvision_requires!r}"
        if not requirement.specifier.contains(torch_version, prereleases=True):
            return f"made for torch {requirement.specifier}, but torch is {torch_version}"
    builds = _build_kind(torch_version), _build_kind(torchvision_version)
    if None not in builds and builds[0] != builds[1]:
        return f"a {builds[1]} build beside a {builds[0]} build of torch ({torch_version})"
    return None


def _build_kind(version: str) -> str | None:
    """ "CPU", "CUDA" or "ROCm" from the label after the plus sign; None where there is none (e.g. macOS)."""
    label = version.partition("+")[2]
    kinds = {"cpu": "CPU", "cu": "CUDA", "rocm": "ROCm"}
    return next((kind for start, kind in kinds.items() if label.startswith(start)), None)


def _cudnn_release(version: int) -> tuple[int, int, int]:
    """Version 9 counts 10000 a major version (91002: 9.10.2), older ones 1000 (8902: 8.9.2)."""
    major, rest = divmod(version, 10000 if version >= 90000 else 1000)
    return major, rest // 100, rest % 100


def _version(text: str) -> Version:
    """Versions of hand-made builds may be unreadable: they count as 0, so a judge asks for a real one."""
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def _count_names(names: Sequence[str]) -> str:
    counts = {name: names.count(name) for name in names}
    return ", ".join(f"{count} x {name}" for name, count in counts.items())
