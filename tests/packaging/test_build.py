"""What would be published: complete, small, the same by either way, and fit for an index. Nothing is uploaded."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from nnssl_mae import __version__
from nnssl_mae.doctor.findings import TESTED_NNUNET
from tests.packaging.conftest import REPOSITORY, build

LARGEST_WHEEL = 1_000_000  # bytes
WORKFLOWS = REPOSITORY / ".github" / "workflows"
CONTAINERS = REPOSITORY / "scripts" / "container"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_WHEEL


def test_the_sources_given_away_are_all_that_builds_and_tests(checkout: Path, unpacked: Path) -> None:
    given = files_below(unpacked)
    for needed in ("LICENSE", "configs/mae.yaml", "scripts/nnssl_mae_registration.pth", "tests/conftest.py", ".ci/run"):
        assert needed in given
    assert files_below(checkout) - given == set()
    assert given - files_below(checkout) == {"PKG-INFO"}


def test_the_wheel_of_the_sources_given_away_is_that_of_the_checkout(wheel: Path, wheel_of_sdist: Path) -> None:
    contents = []
    for file in (wheel, wheel_of_sdist):
        with zipfile.ZipFile(file) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0].keys() == contents[1].keys()
    assert [name for name, content in contents[0].items() if contents[1][name] != content] == []
    assert wheel.name == wheel_of_sdist.name == f"nnssl_mae-{__version__}-py3-none-any.whl"


def test_an_index_would_show_licence_and_readme(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.10"
    assert "nnU-Net v2 learns from labelled scans only" in str(about.get_payload())


def test_every_tool_of_the_tests_is_in_the_dev_extra(wheel: Path) -> None:
    asked = [text for text in metadata(wheel).get_all("Requires-Dist", []) if "extra == 'dev'" in text]
    names = {re.split(r"[^\w-]", text)[0].lower() for text in asked}
    assert {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "build", "hatchling", "twine"} <= names


def test_the_page_on_versions_names_the_bounds_that_pip_enforces_and_what_doctor_calls_tested(wheel: Path) -> None:
    page = (REPOSITORY / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    bounds = {row[0]: re.split(r"[ ;,]", row[1])[0] for row in rows}
    needed = [
        Requirement(text) for text in metadata(wheel).get_all("Requires-Dist", []) if "extra == 'dev'" not in text
    ]
    asked = {need.name: spec.version for need in needed for spec in need.specifier if spec.operator == ">="}
    assert {name: bounds.get(name, bounds.get(name.replace("-", "_"))) for name in asked} == asked
    assert set(TESTED_NNUNET) <= {cell for row in rows if row[0].startswith("3.") for cell in row}


def test_the_changelog_tells_of_this_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(__version__)}\b", changelog, re.MULTILINE)


@pytest.mark.skipif(find_spec("twine") is None, reason="twine is not installed here; it is in the dev extra")
def test_twine_finds_nothing_to_complain_of(wheel: Path, sdist: Path) -> None:
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", str(wheel), str(sdist)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.count("PASSED") == 2


# ---------------------------------------------------------------------- containers: never built, no engine at hand


def copied_by_the_dockerfile() -> set[str]:
    text = (CONTAINERS / "Dockerfile").read_text(encoding="utf-8")
    lines = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    return {name for line in lines for name in line}


def copied_by_apptainer() -> set[str]:
    text = (CONTAINERS / "apptainer.def").read_text(encoding="utf-8")
    files = re.search(r"^%files\n(.*?)^%", text, re.MULTILINE | re.DOTALL)
    assert files is not None
    pairs = [line.split() for line in files[1].splitlines() if line.strip()]
    assert all(target == f"/opt/nnssl_mae/{source}" for source, target in pairs)
    return {source for source, _ in pairs}


def test_containers_copy_what_the_package_is_built_from(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    assert copied_by_the_dockerfile() == copied_by_apptainer()
    (inside := tmp_path / "inside").mkdir()
    for name in copied_by_the_dockerfile():
        (inside / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (checkout / name).is_dir() else shutil.copy
        copy(checkout / name, inside / name)
    (out := tmp_path / "out").mkdir()
    with zipfile.ZipFile(build("wheel", inside, out)) as built, zipfile.ZipFile(wheel) as whole:
        assert built.namelist() == whole.namelist()


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_containers_say_that_nobody_has_built_them(name: str) -> None:
    assert (CONTAINERS / name).read_text(encoding="utf-8").startswith("# NEVER BUILT BY US: no engine at hand.")


# ---------------------------------------------------------------------- workflows: read here, run nowhere yet


def workflow(name: str) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    return content | {"on": content[True]}


def steps(content: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in content["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.yml")), ids=lambda file: file.name)
def test_workflows_pin_actions_by_major_version_and_use_no_secret(file: Path) -> None:
    for step in steps(workflow(file.name)):
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]) if "uses" in step else "run" in step
    assert "secrets." not in file.read_text(encoding="utf-8")
    assert workflow(file.name)["permissions"] == {"contents": "read"}


def test_only_linux_decides_and_by_the_command_of_the_readme() -> None:
    jobs = workflow("ci.yml")["jobs"]
    deciding = [job for job in jobs.values() if not job.get("continue-on-error")]
    assert all(job["runs-on"].startswith("ubuntu") for job in deciding)
    command = "scripts/test.sh"
    run = [step["run"] for job in deciding for step in job["steps"] if "run" in step]
    assert run == [command, f"{command} tests/docs/test_walk.py -m soak"]
    assert command in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert all("untested" in job["name"] for job in jobs.values() if job.get("continue-on-error"))


def test_only_a_tag_publishes_and_only_after_the_tests() -> None:
    content = workflow("release.yml")
    assert content["on"] == {"push": {"tags": ["v*"]}}
    publish = content["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]
    assert publish["needs"] == "build"
    assert content["jobs"]["build"]["needs"] == "tests"
    assert [name for name, job in content["jobs"].items() if "id-token" in job.get("permissions", {})] == ["publish"]
