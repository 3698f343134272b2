"""Gathers the values from the real environment. Errors met on the way become findings with their text."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnssl_mae.doctor.findings import (
    EXT_TRAINER,
    OUR_TRAINERS,
    PLUGIN_FOLDER,
    Finding,
    judge_batchgeneratorsv2,
    judge_cuda,
    judge_cudnn,
    judge_folder,
    judge_free_disk,
    judge_nnunet,
    judge_python,
    judge_registration,
    judge_torch,
    judge_torchvision,
    judge_trainers,
    names_folder,
)

LOOK_UP_SECONDS = 300

# Runs in a new interpreter: only there is it visible whether the .pth file does its work at start-up.
LOOK_UP_SCRIPT = """
import json, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as look_up
print(json.dumps({name: look_up(name).__module__ for name in sys.argv[1:]}))
"""


def collect_findings() -> list[Finding]:
    """Look at the real environment. Errors met on the way become findings with their text."""
    return [
        judge_python(platform.python_version()),
        *_torch_findings(),
        judge_nnunet(_installed("nnunetv2")),
        judge_batchgeneratorsv2(_installed("batchgeneratorsv2")),
        *_folder_findings(),
        *_registration_findings(),
    ]


def _torch_findings() -> list[Finding]:
    torch, torch_error = _try_import("torch")
    torch_version = _build_version("torch")
    findings = [judge_torch(torch_version, torch_error)]
    if torch is not None:
        gpu_names, gpu_error = _gpu_names(torch)
        cudnn_version, cudnn_error = _cudnn_version(torch)
        findings += [
            judge_cuda(torch.version.cuda, gpu_names, _nvidia_driver_present(), gpu_error),
            judge_cudnn(cudnn_version, bool(gpu_names), cudnn_error),
        ]
        _, torchvision_error = _try_import("torchvision")
        requires = _requirement_on_torch()
        findings.append(judge_torchvision(torch_version, _build_version("torchvision"), requires, torchvision_error))
    return findings


def _folder_findings() -> list[Finding]:
    findings = []
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        findings.append(judge_folder(variable, value))
        if variable != "nnUNet_raw" and value and Path(value).is_dir():
            findings.append(_free_disk_finding(variable, value))
    return findings


def _free_disk_finding(variable: str, folder: str) -> Finding:
    try:
        return judge_free_disk(variable, shutil.disk_usage(folder).free)
    except OSError as error:
        advice = f"The free space cannot be read ({error}). Check that the disk is mounted."
        return Finding("warning", "free disk space", f"unknown at {variable}", advice)


def _registration_findings() -> list[Finding]:
    modules, error = _look_up_trainers()
    return [
        judge_registration(_set_at_start(), os.environ, PLUGIN_FOLDER),
        judge_trainers(modules, error, os.environ, PLUGIN_FOLDER),
    ]


def _set_at_start() -> bool:
    """Whether a new interpreter without an inherited ``nnUNet_extTrainer`` gets it from the ``.pth`` file."""
    environment = {name: value for name, value in os.environ.items() if name != EXT_TRAINER}
    script = f"import os; print(os.environ.get({EXT_TRAINER!r}, ''))"
    return names_folder(_run_python(["-c", script], environment).stdout.strip(), PLUGIN_FOLDER)


def _look_up_trainers() -> tuple[dict[str, str], str | None]:
    """Trainer name to module, and the last line of the error output where the look-up failed."""
    started = _run_python(["-c", LOOK_UP_SCRIPT, *OUR_TRAINERS], os.environ)
    if started.returncode != 0:
        return {}, (started.stderr.strip().splitlines() or [f"exit code {started.returncode}"])[-1]
    last_line = started.stdout.strip().rpartition("\n")[2]
    try:
        return json.loads(last_line), None
    except json.JSONDecodeError:
        return {}, f"unexpected answer: {last_line}"


def _run_python(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A new interpreter, with exactly these variables and one for what it prints: Windows would choose its own letters.

    Not starting or not ending counts as a failed run.
    """
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(
            command,
            env={**environment, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=LOOK_UP_SECONDS,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=str(error))


def _try_import(module: str) -> tuple[Any, str | None]:
    """The module, or None and the error text: a broken binary raises OSError, RuntimeError and others."""
    try:
        return importlib.import_module(module), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _build_version(package: str) -> str | None:
    """The version with its build label ("+cpu", "+cu132").

    The metadata of the default builds has no label, so it is read from the package's ``version.py``, as text:
    that also works where the import crashes.
    """
    spec = find_spec(package)
    if spec is not None and spec.origin is not None:
        version_file = Path(spec.origin).parent / "version.py"
        if version_file.is_file():
            text = version_file.read_text(encoding="utf-8")
            found = re.search(r"""^__version__\s*(?::\s*\w+\s*)?=\s*['"]([^'"]+)['"]""", text, re.MULTILINE)
            if found:
                return found.group(1)
    return _installed(package)


def _requirement_on_torch() -> str | None:
    """What the metadata of torchvision ask of torch; None where they ask nothing."""
    try:
        requirements = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return None
    return next((line for line in requirements if re.match(r"torch\b(?!-)", line)), None)


def _gpu_names(torch: Any) -> tuple[list[str], str | None]:
    """Names of the GPUs that torch can use, and the text of the error where asking failed."""
    try:
        if not torch.cuda.is_available():
            return [], None
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())], None
    except RuntimeError as error:
        return [], str(error)


def _cudnn_version(torch: Any) -> tuple[int | None, str | None]:
    """cuDNN's number, and the text of the error: torch refuses a cuDNN older than it was built for."""
    try:
        return torch.backends.cudnn.version(), None
    except RuntimeError as error:
        return None, str(error)


def _nvidia_driver_present() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
