"""The site builds without a warning, and a broken link would stop it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT

_spec = importlib.util.spec_from_file_location("docs_links", ROOT / "scripts" / "docs_links.py")
assert _spec is not None and _spec.loader is not None
docs_links = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_links)


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason=f"the site needs {module}; install the extra `docs`")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    for page in ("index", "first_hour", "concepts", "reference/cli", "reference/python", "troubleshooting", "scans"):
        text = (tmp_path / f"{page}.html").read_text(encoding="utf-8")
        assert "fonts.googleapis" not in text and "google-analytics" not in text
    python = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "read_checkpoint" in python and ":func:<code" not in python


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A repository with a script and two pages; its folder of pages."""
    for name in ("scripts/run.sh", "docs/page.md", "docs/howto/other.md"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return tmp_path / "docs"


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("page.md", "[scripts/run.sh](../scripts/run.sh)", "`scripts/run.sh`"),
        ("howto/other.md", "[the script](../../scripts/run.sh)", "the script (`scripts/run.sh`)"),
        ("page.md", "[howto](howto)", "`docs/howto`"),
    ],
)
def test_links_to_what_the_site_does_not_hold_become_names(docs: Path, page: str, link: str, shown: str) -> None:
    assert docs_links.without_outside_links(f"See {link}.", page, docs) == f"See {shown}."


@pytest.mark.parametrize(
    "link",
    [
        "[gone](../scripts/gone.sh)",
        "[another](howto/other.md#part)",
        "[a page that is missing](missing.md)",
        "[far away](../../../etc)",
        "[a paper](https://arxiv.org/abs/2410.23132)",
        "![a picture](../scripts/run.sh)",
    ],
)
def test_all_other_links_are_left_for_mkdocs_to_check(docs: Path, link: str) -> None:
    assert docs_links.without_outside_links(link, "page.md", docs) == link
