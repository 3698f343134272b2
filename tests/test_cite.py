"""``nnssl-mae cite``: BibTeX that can be appended to a file, of every recipe and checkpoint; and CITATION.cff."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nnssl_mae import __version__, cli
from nnssl_mae.recipes.citing import NNUNET, bibliography, bibtex
from nnssl_mae.recipes.finetuning import finetuning_folder, load_any_recipe
from nnssl_mae.recipes.reading import shipped_recipes
from tests.checkpoints.files import adaptation_plan, write_nnssl

SHIPPED = [*shipped_recipes(), *shipped_recipes(finetuning_folder())]
CITED = list(dict.fromkeys(citation for name in SHIPPED for citation in load_any_recipe(name).citation))
CITATION_FILE = Path(__file__).parents[1] / "CITATION.cff"
Entries = dict[str, dict[str, str]]
Command = Callable[..., tuple[int, str, str]]


def entries(text: str) -> Entries:
    """Fields of each entry under its key; fails where the text is anything but BibTeX, or a key stands twice."""
    found: Entries = {}
    while text := text.lstrip():
        start = re.match(r"@(article|misc|inproceedings)\{([A-Za-z0-9-]+),", text)
        assert start is not None, f"no entry begins here: {text[:60]}"
        body, text = until_closed(text, start.end())
        assert start[2] not in found
        found[start[2]] = fields(body)
    return found


def until_closed(text: str, position: int) -> tuple[str, str]:
    """What stands before the brace that closes, and what after it."""
    open_braces = 1
    for index in range(position, len(text)):
        open_braces += {"{": 1, "}": -1}.get(text[index], 0)
        if open_braces == 0:
            return text[position:index], text[index + 1 :]
    raise AssertionError(f"a brace is never closed: {text[:60]}")


def fields(body: str) -> dict[str, str]:
    found = {}
    while body := body.lstrip(" \n,"):
        start = re.match(r"(\w+)\s*=\s*\{", body)
        assert start is not None, f"no field begins here: {body[:60]}"
        found[start[1]], body = until_closed(body, start.end())
    return found


@pytest.fixture
def cite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``nnssl-mae cite`` in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnssl-mae", "cite", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_gives_its_papers_and_nnunet_once_each(name: str, cite: Command) -> None:
    code, out, err = cite(name)
    assert (code, err) == (0, "")
    found = entries(out)
    assert "isensee2021nnunet" in found
    assert all({"author", "title", "year"} <= paper.keys() for paper in found.values())
    numbers = [number for citation in load_any_recipe(name).citation for number in re.findall(r"arXiv:(\S+)", citation)]
    assert sorted(paper["eprint"] for paper in found.values() if "eprint" in paper) == sorted(numbers)


def test_a_paper_of_several_recipes_stands_there_once(cite: Command) -> None:
    # Their citations of AMAES differ in capital letters.
    _, out, _ = cite("amaes", "amaes_finetuning", "mae", "warmup")
    assert sorted(entries(out)) == ["isensee2021nnunet", "munk2024amaes", "wald2025openmind", "wald2025revisiting"]


@pytest.mark.parametrize("name", SHIPPED)
def test_papers_of_shipped_recipes_are_ready_to_print(name: str, cite: Command) -> None:
    for paper in entries(cite(name)[1]).values():
        authors = paper["author"].split(" and ")
        assert len(authors) > 3
        assert all(", " in author for author in authors)
        assert len(paper["title"].split()) > 5


def test_two_papers_never_share_a_key() -> None:
    found = entries(
        bibliography(["Wald 2025, Primus one, arXiv:2501.00001", "Wald 2025, Primus two, arXiv:2501.00002"])
    )
    assert [paper["eprint"] for paper in found.values()] == ["2501.00001", "2501.00002"]


def test_a_recipe_of_ones_own_gives_the_papers_of_its_base_or_its_own(cite: Command, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: s3d\nseed: 3\n")
    assert entries(cite(mine)[1]) == entries(cite("s3d")[1])
    mine.write_text('base: s3d\ncitation: ["Me and You 2026, 50 % of {it} & more, doi:10.1000/a_b"]\n')
    found = entries(cite(mine)[1])
    assert found["me2026more"] == {
        "author": "Me and You", "title": r"{50 \% of it \& more}", "year": "2026", "doi": "10.1000/a_b",
    }  # fmt: skip


def test_a_checkpoint_gives_the_papers_that_it_names(cite: Command, tmp_path: Path) -> None:
    write_nnssl(tmp_path / "a.pth", adaptation_plan(), citations=["Roe 2024, A method, arXiv:2401.00001"])
    code, out, _ = cite(tmp_path / "a.pth")
    assert code == 0
    assert sorted(entries(out)) == ["isensee2021nnunet", "roe2024method"]


def test_a_checkpoint_that_names_none_is_not_passed_over(cite: Command, tmp_path: Path) -> None:
    write_nnssl(tmp_path / "a.pth", adaptation_plan(), citations=[])
    code, out, err = cite(tmp_path / "a.pth")
    assert (code, out) == (2, "")
    assert "a.pth names no paper to cite; name the recipe" in err


def test_an_unknown_name_is_a_sentence_and_nothing_for_the_file(cite: Command) -> None:
    code, out, err = cite("mae", "s4d")
    assert (code, out) == (2, "")
    assert "There is no recipe 's4d', did you mean 's3d'?" in err


def test_the_name_of_a_recipe_means_the_recipe_though_a_folder_is_called_so(
    cite: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3d").mkdir()
    assert "tian2023designing" in cite("s3d")[1]


def test_lines_of_recipes_become_entries() -> None:
    assert bibtex("Wald et al. 2025, An OpenMind for 3D, with commas, arXiv:2412.17041") == (
        "@misc{wald2025openmind,\n  author = {Wald and others},\n  title = {{An OpenMind for 3D, with commas}},\n"
        "  year = {2025},\n  eprint = {2412.17041},\n  archivePrefix = {arXiv}\n}"
    )
    assert entries(bibtex(NNUNET)) == {
        "isensee2021nnunet": {
            "author": "Isensee and others", "title": "{nnU-Net}", "year": "2021", "journal": "Nature Methods",
            "volume": "18", "pages": "203--211",
        }
    }  # fmt: skip
    assert fields(bibtex("Zhou et al. 2023, nnFormer, IEEE TIP, arXiv:2109.03201").partition(",")[2][:-1]) == {
        "author": "Zhou and others", "title": "{nnFormer}", "year": "2023",
        "journal": "IEEE Transactions on Image Processing", "eprint": "2109.03201", "archivePrefix": "arXiv",
    }  # fmt: skip


def test_bibtex_stays_and_anything_else_becomes_a_note() -> None:
    assert bibtex(" @article{a, title={b}}\n") == "@article{a, title={b}}"
    for text in ("somebody, some day", "@nobody", "@misc{open, title={x}", "a } b \x1b[31m", ""):
        (entry,) = entries(bibtex(text)).values()
        assert set(entry) == {"note"}
        assert entry["note"].isprintable()


# ---------------------------------------------------------------------- CITATION.cff


@pytest.fixture(scope="module")
def citation_file() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CITATION_FILE.read_text(encoding="utf-8"))
    return content


def test_the_citation_file_has_what_the_format_asks_for(citation_file: dict[str, Any]) -> None:
    assert citation_file["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation_file.keys()
    assert citation_file["version"] == __version__
    for reference in citation_file["references"]:
        assert {"type", "title", "authors", "year"} <= reference.keys()
        assert all("name" in author or "family-names" in author for author in reference["authors"])


def test_the_citation_file_names_the_papers_of_all_recipes_and_no_others(citation_file: dict[str, Any]) -> None:
    cited = entries(bibliography([*CITED, NNUNET]))
    preprints = {identifier["value"].removeprefix("arXiv:") for identifier in identifiers(citation_file)}
    assert {paper["eprint"] for paper in cited.values() if "eprint" in paper} == preprints
    named = {(str(of["journal"]), f"{of['volume']}") for of in citation_file["references"] if "volume" in of}
    assert {(paper["journal"], paper["volume"]) for paper in cited.values() if "volume" in paper} == named
    assert len(cited) == len(citation_file["references"])


def identifiers(content: dict[str, Any]) -> list[dict[str, str]]:
    return [identifier for reference in content["references"] for identifier in reference.get("identifiers", [])]
