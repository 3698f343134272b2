"""nnU-Net finds our trainers after a plain ``pip install``, and nothing is left after uninstalling.

Every test uses a fresh virtual environment that borrows torch, nnunetv2 and pip from the running interpreter
through a ``.pth`` file with nothing but a path. Python does not read the ``.pth`` files *inside* a folder
borrowed like that, so an editable nnssl_mae of the running interpreter stays out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.conftest import REPOSITORY

pytestmark = pytest.mark.environment

EXT_TRAINER = "nnUNet_extTrainer"
REGISTRATION = "nnssl_mae_registration.pth"
TRAINERS = {
    "nnUNetTrainerMAE": "nnssl_mae.training.mae_trainer",
    "nnUNetTrainerMAEFinetune": "nnssl_mae.training.finetune_trainer",
}

# A file, not `python -c`: the children made by spawn import it again.
LOOK_UP_SCRIPT = '''
import importlib, json, multiprocessing, os, pickle, sys


def find(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


def describe(names):
    """Module, identity and pickling of every trainer, seen from this process."""
    seen = {"ext": os.environ.get("nnUNet_extTrainer"), "trainers": {}}
    for name in names:
        first, second = find(name), find(name)
        seen["trainers"][name] = {
            "module": first.__module__,
            "same_twice": first is second,
            "same_as_imported": getattr(sys.modules.get(first.__module__), name, None) is first,
        }
        if first.__module__.startswith("nnssl_mae."):
            seen["trainers"][name]["pickles"] = pickle.loads(pickle.dumps(first)) is first
    return seen


def in_child(rank, folder, names, label):
    with open(os.path.join(folder, f"{label}.json"), "w") as file:
        json.dump(describe(names), file)


if __name__ == "__main__":
    folder, children, *names = sys.argv[1:]
    in_child(0, folder, names, "parent")
    if children == "with_children":
        import torch.multiprocessing

        child = multiprocessing.get_context("spawn").Process(
            target=in_child, args=(0, folder, names, "multiprocessing")
        )
        child.start()
        torch.multiprocessing.spawn(in_child, args=(folder, names, "torch"), nprocs=1)
        child.join()
'''

# Starts itself anew as often as its argument says; the last one speaks.
RELAY_SCRIPT = """
import os, subprocess, sys

generations = int(sys.argv[1])
if generations:
    subprocess.run([sys.executable, __file__, str(generations - 1)], check=True)
else:
    print(os.environ["nnUNet_extTrainer"])
"""

USERS_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerOfSomebodyElse(nnUNetTrainer):
    pass
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own that borrows the libraries of the running interpreter."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"

    @property
    def site_packages(self) -> Path:
        # Named, because some distributions prefer another scheme outside virtual environments.
        before_3_11 = "nt" if os.name == "nt" else "posix_prefix"
        scheme = "venv" if "venv" in sysconfig.get_scheme_names() else before_3_11
        return Path(sysconfig.get_path("purelib", scheme, {"base": str(self.folder)}))

    @property
    def plugin_folder(self) -> Path:
        return self.site_packages / "nnssl_mae" / "nnunet_plugin"

    def run(self, *arguments: object, ext: str | None = None) -> subprocess.CompletedProcess[str]:
        """A new interpreter in which ``nnUNet_extTrainer`` is inherited only if given."""
        clean = {name: v for name, v in os.environ.items() if name not in (EXT_TRAINER, "PYTHONPATH", "PYTHONHOME")}
        if ext is not None:
            clean[EXT_TRAINER] = ext
        command = [str(self.python), *map(str, arguments)]
        done = subprocess.run(command, env=clean, cwd=self.folder, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def pip(self, *arguments: object) -> None:
        self.run("-m", "pip", "--no-input", "--quiet", *arguments)

    def install(self, *what: object) -> None:
        # An editable nnssl_mae of the running interpreter is visible as metadata: pip would do nothing.
        self.pip("install", "--no-index", "--no-deps", "--ignore-installed", *what)

    def ext_at_start(self, ext: str | None = None) -> list[str]:
        """The entries of ``nnUNet_extTrainer`` in an interpreter just started."""
        script = f"import os; print(os.environ.get({EXT_TRAINER!r}, ''))"
        started = self.run("-c", script, ext=ext)
        assert started.stderr == ""
        return [entry for entry in started.stdout.strip().split(os.pathsep) if entry]


def new_environment(folder: Path) -> Environment:
    # pip is borrowed as well, which spares its installation.
    venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(folder)
    environment = Environment(folder)
    lenders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (environment.site_packages / "borrowed.pth").write_text("\n".join(sorted(lenders)) + "\n")
    return environment


def look_up(
    environment: Environment, folder: Path, *names: str, children: bool = False, ext: str | None = None
) -> dict[str, Any]:
    """What processes see when they ask nnU-Net for ``names``: {"parent": ..., "torch": ...}."""
    folder.mkdir()
    script = folder / "look_up.py"
    script.write_text(LOOK_UP_SCRIPT)
    environment.run(script, folder, "with_children" if children else "alone", *names, ext=ext)
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """nnU-Net without our package."""
    environment = new_environment(tmp_path_factory.mktemp("bare") / "env")
    script = "import importlib.util as u; print(u.find_spec('nnunetv2') is not None, u.find_spec('nnssl_mae'))"
    seen = environment.run("-c", script).stdout.split()
    assert seen == ["True", "None"], "the running interpreter needs nnunetv2, and nnssl_mae only as editable install"
    assert environment.ext_at_start() == []
    return environment


@pytest.fixture(scope="session")
def installed(bare: Environment, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """nnU-Net and our wheel. Asking for `bare` first proves that nothing else brings nnssl_mae in."""
    environment = new_environment(tmp_path_factory.mktemp("installed") / "env")
    environment.install(wheel)
    return environment


@pytest.fixture(scope="session")
def editable(bare: Environment, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = new_environment(tmp_path_factory.mktemp("editable") / "env")
    environment.install("--no-build-isolation", "--editable", checkout)
    return environment


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "users_trainers"
    folder.mkdir()
    (folder / "somebody_elses_trainer.py").write_text(USERS_TRAINER)
    return folder


def assert_finds_ours(seen: dict[str, Any]) -> None:
    """Both trainers come from the package, are one class each and pickle."""
    for name, module in TRAINERS.items():
        assert seen["trainers"][name] == {
            "module": module,
            "same_twice": True,
            "same_as_imported": True,
            "pickles": True,
        }


def test_wheel_holds_the_presets_the_types_marker_and_the_registration(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {f"nnssl_mae/configs/{file.name}" for file in (REPOSITORY / "configs").glob("*.yaml")}
    assert presets
    assert presets | {"nnssl_mae/py.typed", REGISTRATION} <= names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"nnssl_mae", REGISTRATION}


def test_new_processes_find_both_trainers_after_installing_the_wheel(installed: Environment, tmp_path: Path) -> None:
    seen = look_up(installed, tmp_path / "seen", *TRAINERS, children=True)
    assert set(seen) == {"parent", "multiprocessing", "torch"}
    for process in seen.values():
        assert_finds_ours(process)
        assert process["ext"] == str(installed.plugin_folder)


def test_new_processes_find_both_trainers_after_an_editable_install(
    editable: Environment, checkout: Path, tmp_path: Path
) -> None:
    seen = look_up(editable, tmp_path / "seen", *TRAINERS)["parent"]
    assert_finds_ours(seen)
    assert Path(seen["ext"]).resolve() == (checkout / "src" / "nnssl_mae" / "nnunet_plugin").resolve()


def test_a_users_own_folder_stays_first_and_works_beside_ours(
    installed: Environment, users_folder: Path, tmp_path: Path
) -> None:
    names = ("nnUNetTrainerOfSomebodyElse", *TRAINERS)
    seen = look_up(installed, tmp_path / "seen", *names, ext=str(users_folder))["parent"]
    assert seen["ext"] == os.pathsep.join([str(users_folder), str(installed.plugin_folder)])
    assert seen["trainers"]["nnUNetTrainerOfSomebodyElse"]["module"] == "somebody_elses_trainer"
    assert_finds_ours(seen)


@pytest.mark.parametrize("users_value", [None, "", "/home/me/trainers"])
def test_grandchildren_do_not_append_again(installed: Environment, users_value: str | None, tmp_path: Path) -> None:
    once = installed.ext_at_start(users_value)
    assert once == [entry for entry in (users_value, str(installed.plugin_folder)) if entry]
    script = tmp_path / "relay.py"
    script.write_text(RELAY_SCRIPT)
    grandchild = installed.run(script, 2, ext=users_value).stdout.strip()
    assert grandchild.split(os.pathsep) == once


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_uninstalling_leaves_nothing(kind: str, wheel: Path, checkout: Path, tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "env")
    before = {path.relative_to(environment.folder) for path in environment.folder.rglob("*")}
    if kind == "wheel":
        environment.install(wheel)
    else:
        environment.install("--no-build-isolation", "--editable", checkout)
    assert len(environment.ext_at_start()) == 1
    environment.run("-c", "import nnssl_mae.errors")  # leaves a __pycache__ folder, as any use does
    environment.pip("uninstall", "--yes", "nnssl_mae")
    after = {path.relative_to(environment.folder) for path in environment.folder.rglob("*")}
    assert after == before
    assert environment.ext_at_start() == []


def test_a_registration_left_behind_is_silent(wheel: Path, tmp_path: Path) -> None:
    environment = new_environment(tmp_path / "env")
    environment.install(wheel)
    package = environment.site_packages / "nnssl_mae"

    shutil.rmtree(package)
    assert (environment.site_packages / REGISTRATION).is_file()
    assert environment.ext_at_start() == []  # which also checks that nothing is printed on stderr

    (package / "__pycache__").mkdir(parents=True)  # half deleted: Python now sees a namespace package
    assert environment.ext_at_start("/home/me/trainers") == ["/home/me/trainers"]


def test_another_environment_that_inherits_our_folder_still_finds_its_own_trainer(
    bare: Environment, installed: Environment, users_folder: Path, tmp_path: Path
) -> None:
    inherited = os.pathsep.join([str(installed.plugin_folder), str(users_folder)])
    seen = look_up(bare, tmp_path / "seen", "nnUNetTrainerOfSomebodyElse", ext=inherited)["parent"]
    assert seen["ext"] == inherited
    assert seen["trainers"]["nnUNetTrainerOfSomebodyElse"]["module"] == "somebody_elses_trainer"
