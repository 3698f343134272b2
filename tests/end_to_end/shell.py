"""Running the real commands as subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

_BIN = Path(sysconfig.get_path("scripts"))


class Shell:
    """Runs commands in an environment with nnU-Net's folders below one folder, and nothing else of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet")}
        self.environment |= {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
        self.environment |= {"nnUNet_def_n_proc": "2", "nnUNet_n_proc_DA": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def start(self, command: str, *arguments: object, python: Path | None = None) -> subprocess.Popen[str]:
        """Starts an installed command, or an argument list for another interpreter."""
        program = [str(python), command] if python else [str(_BIN / command)]
        return subprocess.Popen(
            [*program, *map(str, arguments)],
            env=self.environment,
            cwd=self.folder,
            encoding="utf-8",
            errors="replace",  # a killed process may end within a letter
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that killing the process group ends its workers too
        )

    def fails(self, command: str, *arguments: object, python: Path | None = None) -> str:
        """Runs to the end; returns what it printed; the exit code must not be 0."""
        process = self.start(command, *arguments, python=python)
        output = process.communicate()[0]
        assert process.returncode != 0, output
        return output

    def __call__(self, command: str, *arguments: object, python: Path | None = None) -> str:
        """Runs to the end; returns what it printed; the exit code must be 0."""
        process = self.start(command, *arguments, python=python)
        output = process.communicate()[0]
        assert process.returncode == 0, f"{command} {arguments}\n{output}"
        return output


def bare_python(folder: Path) -> Path:
    """An interpreter with everything that the running one has, except our package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (python,) = folder.glob("bin/python")
    (site,) = folder.glob("lib/python*/site-packages")
    # Python does not read the .pth files inside a folder borrowed like this, so an editable install stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
