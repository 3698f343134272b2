"""scan.html: what is odd is named, what is good is not, and no file name can do harm."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from rich.console import Console

from nnssl_mae.catalogue.checks import CHECKS
from nnssl_mae.catalogue.report.charts import histogram
from nnssl_mae.catalogue.report.outliers import find_outliers
from nnssl_mae.catalogue.report.pictures import read_shrunk
from nnssl_mae.catalogue.report.sections import MEANINGS
from nnssl_mae.catalogue.report.write import sample_scans, write_report
from nnssl_mae.catalogue.rules import add_rule
from nnssl_mae.catalogue.table import read_catalogue
from nnssl_mae.errors import UserError
from tests.catalogue.scan_tables import head, noise, png_of, row, sphere, write

ODD = {
    "upside": png_of(head(50)[:, :, ::-1]),
    "rotated": png_of(head(51)[:, ::-1, ::-1]),
    "lying": png_of(head(52).transpose(0, 2, 1)),
    "noise": png_of(noise(0)),
    "sphere": png_of(sphere()),
}


class Page(HTMLParser):
    """Tags with their attributes, and the text of each section by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self._section = str(dict(attributes)["id"])
            self.sections[self._section] = ""

    def handle_data(self, data: str) -> None:
        self.sections[self._section] += data + "\n"

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def report(folder: Path, **options) -> tuple[Page, str]:
    """The page, and what was printed."""
    console = Console(file=io.StringIO(), width=300)
    path = write_report(folder, console, **options)
    assert path == folder / "scan.html"
    return Page(path.read_text(encoding="utf-8")), console.file.getvalue()


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    return {f"sub-{seed:02d}_T1w": png_of(head(seed)) for seed in range(36)}


@pytest.fixture
def brains(tmp_path: Path, good: dict[str, bytes]) -> Path:
    """36 upright brains, 5 odd pictures, and two rejected scans."""
    rows = [row(case) for case in (*good, *ODD)]
    rows += [row("bad", check="truncated", detail="ends after 12 of 90 kB", verdict="rejected", modality="T2w")]
    rows += [row("double", check="duplicate", detail="equals sub-00_T1w", verdict="rejected")]
    return write(tmp_path / "catalogue", rows, {**good, **ODD}, roots=["/scans"])


def outliers_of(folder: Path) -> dict[str, str]:
    rows = read_catalogue(folder).accepted.reset_index(drop=True)
    found = find_outliers(rows, *read_shrunk(folder, rows["case"].tolist()))
    return {outlier.case: "; ".join(outlier.reasons) for outlier in found}


def test_heads_the_wrong_way_round_and_things_that_are_no_head_are_outliers_and_good_ones_are_not(brains) -> None:
    found = outliers_of(brains)
    assert found.keys() == ODD.keys()
    assert "better upside down" in found["upside"]
    assert "better rotated by 180°" in found["rotated"]
    assert "planes turned or swapped" in found["lying"]
    assert "unlike the median of T1w" in found["noise"]


def test_the_page_shows_each_outlier_with_its_reason_and_each_rejected_scan_with_its(brains) -> None:
    page, printed = report(brains, sample=10)
    for case in ODD:
        assert case in page.sections["outliers"]
    assert "better upside down" in page.sections["outliers"]
    assert "sub-0" not in page.sections["outliers"]
    assert "ends after 12 of 90 kB" in page.sections["rejected-scans"]
    assert "the file ends too early" in page.sections["left-out"]
    assert "no picture" in page.sections["rejected-scans"]
    assert "10 of 41 accepted scans" in page.sections["random-sample"]
    assert "192 × 192 × 192 voxels, 1 × 1 × 1 mm" in page.sections["random-sample"]
    assert "43 scans of 43 subjects: 41 accepted, 2 rejected." in printed
    assert f"Open {brains / 'scan.html'}" in printed


def test_the_page_is_one_file_without_scripts_or_anything_from_outside(brains) -> None:
    page, _ = report(brains)
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    for _, attributes in page.tags:
        assert str(attributes.get("src", "data:image/png;base64,")).startswith("data:image/png;base64,")
        assert str(attributes.get("href", "#")).startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    text = (brains / "scan.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert sorted(path.name for path in brains.iterdir()) == [
        "catalogue.csv",
        "catalogue.parquet",
        "scan.html",
        "thumbnails.parquet",
    ]


def test_the_same_seed_gives_the_same_page(brains) -> None:
    texts = []
    for seed in (1, 1, 2):
        report(brains, sample=5, seed=seed)
        texts.append((brains / "scan.html").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]


def test_every_check_has_a_meaning_in_words() -> None:
    assert set(MEANINGS) == set(CHECKS)


def test_names_from_files_are_text_and_nothing_else(tmp_path, good) -> None:
    attack = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202egnp.exe"
    texts = dict.fromkeys(("path", "dataset", "subject", "session", "modality", "orientation", "detail"), attack)
    rows = [row(f"{attack}{number}", **texts) for number in range(3)]
    rows += [row(f"{attack} r", check=attack, verdict="rejected", **texts)]
    rows += [row(f"{attack} s", check="empty", verdict="rejected", **texts)]
    folder = write(tmp_path / "<b>catalogue", rows, {f"{attack}0": good["sub-00_T1w"]}, roots=[attack])
    add_rule(folder, "exclude", "case == '<script>' or detail == '</style>'")
    page, _ = report(folder)
    assert (
        page.count("script") == page.count("b") - page.count("figcaption") + 13 - 13 == 0 or page.count("script") == 0
    )
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    text = (folder / "scan.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<b>catalogue" not in text and "\u202e" not in text
    assert "<script>alert(1)</script>" in page.sections["random-sample"]
    assert "<U+202E>" in page.sections["random-sample"]


def test_pictures_that_cannot_be_shown_are_said_and_not_embedded(tmp_path, good) -> None:
    bomb = io.BytesIO()
    Image.new("L", (4000, 4000)).save(bomb, format="PNG")
    jpeg = io.BytesIO()
    Image.new("L", (288, 96)).save(jpeg, format="JPEG")
    whole = good["sub-00_T1w"]
    pictures = {"good": whole, "cut": whole[:2000], "bomb": bomb.getvalue(), "jpeg": jpeg.getvalue(), "empty": b""}
    folder = write(tmp_path / "c", [row(case) for case in (*pictures, "none")], pictures)
    page, printed = report(folder)
    assert page.count("img") == 1
    assert "5 accepted scans have no picture" in printed
    assert "5 accepted scans have no picture" in page.sections["random-sample"]


def test_a_page_that_would_be_too_large_leaves_pictures_out_and_says_so(brains, monkeypatch) -> None:
    monkeypatch.setattr("nnssl_mae.catalogue.report.write.MOST_BYTES", 200_000)
    page, _ = report(brains)
    assert 5 < page.count("img") < 25
    assert "picture left out: page too large" in page.sections["outliers"]
    assert (brains / "scan.html").stat().st_size < 500_000


def test_a_catalogue_without_pictures_has_a_page(tmp_path) -> None:
    folder = write(tmp_path / "c", [row(f"s{number}") for number in range(20)])
    page, printed = report(folder)
    assert page.count("img") == 0 and page.sections["random-sample"].count("no picture\n") == 20
    assert "thumbnails.parquet is missing" in printed


def test_an_empty_catalogue_has_a_page(tmp_path) -> None:
    folder = write(tmp_path / "c", [row("only", check="empty", verdict="rejected")])
    page, printed = report(folder)
    assert "1 scans of 1 subjects: 0 accepted, 1 rejected." in printed
    assert "holds no voxel" in page.sections["left-out"]


def test_damaged_pictures_and_missing_catalogues_are_a_sentence(tmp_path) -> None:
    folder = write(tmp_path / "c", [row("a")])
    (folder / "thumbnails.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"thumbnails\.parquet cannot be read"):
        report(folder)
    with pytest.raises(UserError, match="no catalogue"):
        report(tmp_path)
    with pytest.raises(UserError, match="--sample -1"):
        report(folder, sample=-1)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("p99", 1e7, "intensity range"),
        ("nonzero", 0.99, "share of voxels that are not zero 0.99 (median of T1w: 0.3)"),
        ("min_spacing", 0.4, "smallest spacing 0.4 mm (median of T1w: 1 mm)"),
        ("max_spacing", 6.0, "largest spacing 6 mm"),
        ("min_fov", 55.0, "shortest edge of the field of view 55 mm"),
        ("max_fov", 600.0, "longest edge of the field of view 600 mm"),
        ("size_z", 9, "number of voxels 331,776"),
    ],
)
def test_a_number_far_from_the_others_of_the_modality_is_named_with_its_unit(tmp_path, column, value, named) -> None:
    rng = np.random.default_rng(0)
    others = [row(f"s{number}", p99=float(rng.lognormal(7, 0.3))) for number in range(30)]
    flair = [row(f"f{number}", modality="FLAIR", **{column: value}) for number in range(30)]
    folder = write(tmp_path / "c", [*others, *flair, row("odd", **{column: value})])
    found = outliers_of(folder)
    assert found.keys() == {"odd"}
    assert named in found["odd"]


def test_small_differences_between_nearly_equal_scans_are_none(tmp_path) -> None:
    folder = write(tmp_path / "c", [row(f"s{n}") for n in range(30)] + [row("near", min_spacing=0.9, nonzero=0.4)])
    assert outliers_of(folder) == {}


@pytest.mark.parametrize(
    ("count", "sentence"),
    [(1, "1 accepted scan is an outlier: look at it."), (2, "2 accepted scans are outliers: look at them.")],
)
def test_outliers_are_counted_in_words(tmp_path, count, sentence) -> None:
    rows = [row(f"s{number}") for number in range(30)]
    odd = [row(f"odd{number}", max_fov=900.0) for number in range(count)]
    _, printed = report(write(tmp_path / "c", rows + odd))
    assert sentence in printed.splitlines()


def test_a_rare_modality_is_compared_with_all_and_unknown_numbers_with_none(tmp_path) -> None:
    rows = [row(f"s{number}") for number in range(30)]
    rows += [row("angio", modality="TOF", max_fov=900.0), row("unread", p99=math.nan, min_spacing=math.nan, size_x=0)]
    found = outliers_of(write(tmp_path / "c", rows))
    assert found.keys() == {"angio"} and "median of all scans: 192 mm" in found["angio"]


def test_the_sample_takes_turns_so_that_rare_kinds_are_seen() -> None:
    rows = [row(f"a{number:03d}") for number in range(500)]
    rows += [row(f"b{number}", dataset="small", modality="PDw") for number in range(2)]
    table = pandas.DataFrame([vars(one) for one in rows])
    drawn = sample_scans(table, 10, seed=0)
    assert len(drawn) == 10 and {"b0", "b1"} <= set(drawn)
    assert drawn == sample_scans(table, 10, seed=0) != sample_scans(table, 10, seed=1)
    assert len(sample_scans(table, 1000, seed=0)) == 502


def test_many_rejected_scans_of_a_reason_are_counted_and_a_few_shown(tmp_path) -> None:
    rows = [row(f"s{number:02d}", check="empty", verdict="rejected") for number in range(40)]
    page, _ = report(write(tmp_path / "c", [*rows, row("good")]))
    assert "and 34 more" in page.sections["rejected-scans"]


def test_rules_and_what_they_leave_out_are_on_the_page(brains) -> None:
    add_rule(brains, "exclude", "case.str.startswith('sub-0')")
    add_rule(brains, "exclude", "modality == 'PET'")
    page, printed = report(brains)
    assert "case.str.startswith('sub-0')" in page.sections["rules"]
    assert "matches none" in page.sections["rules"] and "matches none" in printed
    assert "exclude case.str.startswith('sub-0')" in page.sections["left-out"]
    assert "sub-01_T1w" in page.sections["rejected-scans"]


def test_histograms_say_what_lies_outside_and_what_is_unknown() -> None:
    values = np.r_[np.linspace(1, 2, 998), 1e9, 1e9]
    text = histogram("Spacing", "mm", (values, np.array([np.nan, np.inf])))
    assert "outside the axis" in text and "2 unknown" in text and "Spacing, mm" in text
    heights = [float(height) for height in re.findall(r'class="good"[^>]*height="([\d.]+)"', text)]
    assert len(heights) > 20  # one absurd number does not squeeze the others into one bar
    per_subject = histogram("Scans per subject", "", (np.array([1.0, 1, 2, 4]), np.zeros(0)))
    assert re.findall(r">([\d.]+)</text>", per_subject) == ["2", "0", "1", "2", "3", "4"]
    for few in (np.zeros(0), np.zeros(5), np.array([1e-320, 1e300]), np.array([-1e308, 1e308])):
        assert "<figure>" in histogram("Anything", "", (few, few), ratio=False)
        assert "<figure>" in histogram("Anything", "", (few, few), ratio=True)


WRITE = """
import sys
from pathlib import Path
import numpy as np
from tests.catalogue.scan_tables import head, png_of, row, write, write_pictures

folder, count, rng = Path(sys.argv[1]), 40_000, np.random.default_rng(0)
pngs = [png_of(head(seed)) for seed in range(9)]
cases = [f"sub-{number // 4:05d}_{number % 4}" for number in range(count)]
rejected = rng.random(count) < 0.1
rows = (
    row(case, verdict="rejected" if bad else "accepted", check="empty" if bad else "", dataset=f"d{number // 4 % 30}",
        modality=("T1w", "T2w", "FLAIR", "")[number % 4], min_spacing=spacing, max_spacing=5 * spacing,
        p99=900 * spacing, path="/a/long/path/of/a/data/set" * 3 + case)
    for number, (case, bad, spacing) in enumerate(zip(cases, rejected, rng.lognormal(0, 0.4, count)))
)
write(folder, rows)
write_pictures(folder, cases[::8], [pngs[number % 9] for number in range(count // 8)])
"""
REPORT = """
import sys
from pathlib import Path
from rich.console import Console
from nnssl_mae.catalogue.report.write import write_report
from nnssl_mae.memory import peak_memory

write_report(Path(sys.argv[1]), Console())
print("peak", int(peak_memory() / 2**20))
"""


def test_forty_thousand_scans_give_a_page_that_opens_and_need_less_than_a_gibibyte(tmp_path) -> None:
    for script in (WRITE, REPORT):
        command = [sys.executable, "-c", script, str(tmp_path / "large")]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=Path(__file__).parents[2], check=True)
    assert "40000 scans of 10000 subjects" in done.stdout
    assert int(done.stdout.split()[-1]) < 1024
    assert (tmp_path / "large" / "scan.html").stat().st_size < 15e6
