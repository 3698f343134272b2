"""compare.html and the folder it stands in."""

import re
from pathlib import Path

import pandas
import pytest

from nnssl_mae.comparison.measured import Measured
from nnssl_mae.comparison.page import About
from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.comparison.write import MARKER, check_folder, open_folder, write_comparison
from nnssl_mae.errors import UserError
from tests.comparison.made_up import made_up_cases, made_up_comparison, made_up_curves

ARMS = ("scratch", "mae")


def write(out: Path, cases: pandas.DataFrame, comparison: Comparison, about: About | None = None) -> str:
    open_folder(out, {"datasets": [4]})
    curves = made_up_curves(comparison.arms, runs=2, epochs=5)
    measured = Measured(cases, curves, (), {}, (), about or About())
    return write_comparison(out, comparison, measured).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "comparison"
    cases = made_up_cases(ARMS, (1, 10), repeats=2)
    hole = {"dataset": "Dataset004_Hippocampus", "labelled": 10, "fold": "201", "repeat": 1}
    hole |= {"arm": "mae", "replicate": "", "what": "training has not ended"}
    write(out, cases, made_up_comparison(cases, ["scratch"], holes=pandas.DataFrame([hole])))
    return out


def test_every_output_is_there_and_nothing_temporary(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert names == {
        *("cases.csv", "means.csv", "labels.csv", "ranks.csv", "pairs.csv", "holes.csv", "failures.csv"),
        *("convergence.csv", "measured.json", "table.tex", "tables.md", "compare.html", MARKER, "figures"),
    }
    stems = {path.stem for path in (written / "figures").glob("*.png")}
    assert stems == {path.stem for path in (written / "figures").glob("*.svg")}
    assert stems == {"few_labels", "differences_to_scratch", "labels", "convergence"}
    assert len(pandas.read_csv(written / "means.csv")) == 2 * 2 * 3


def test_the_page_needs_nothing_from_outside(written: Path) -> None:
    text = (written / "compare.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|iframe|object)", text)
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert "default-src 'none'" in text and 'name="viewport"' in text
    assert str(written.parent) not in text


def test_the_page_says_what_is_missing(written: Path) -> None:
    text = (written / "compare.html").read_text(encoding="utf-8")
    assert "1 run is missing" in text
    assert "mae, Dataset004_Hippocampus, 10 labelled, fold 201, draw 1: training has not ended" in text


def test_the_page_without_a_control_says_how_to_get_differences(tmp_path: Path) -> None:
    cases = made_up_cases(ARMS)
    text = write(tmp_path / "out", cases, made_up_comparison(cases))
    assert "--control ARM" in text and "No run is missing." in text and 'id="differences"' not in text


def test_names_from_files_cannot_become_html(tmp_path: Path) -> None:
    cases = made_up_cases(('<script>alert("1")</script>', "a&b"))
    evil = About(title="<b>T</b>", arms={"a&b": "<i>"}, remarks=["<u>"])
    text = write(tmp_path / "out", cases, made_up_comparison(cases, ["a&b"]), evil)
    for tag in ("<script", "<b>T", "<i>", "<u>"):
        assert tag not in text
    assert "&lt;script&gt;" in text and "a&amp;b" in text


def test_a_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no comparison"):
        open_folder(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "thesis.txt")


def test_an_earlier_comparison_is_replaced_with_its_pictures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = made_up_cases(ARMS)
    write(out, cases, made_up_comparison(cases, ["scratch"]))
    assert (out / "figures" / "differences_to_scratch.png").is_file()
    write(out, cases, made_up_comparison(cases))
    assert not list((out / "figures").glob("differences*"))


def test_the_same_comparison_gives_the_same_page(tmp_path: Path) -> None:
    cases = made_up_cases(ARMS)
    pages = [write(tmp_path / name, cases, made_up_comparison(cases, ["scratch"])) for name in "ab"]
    assert pages[0] == pages[1]
