"""Tables: what a cell says, in the terminal and in LaTeX."""

import io
import math
import re

import pandas
from rich.console import Console

from nnssl_mae.comparison.summary import Comparison
from nnssl_mae.comparison.tables import (
    csv_files,
    escape_latex,
    labels_sheet,
    latex,
    markdown,
    means_sheet,
    pairs_sheet,
    print_comparison,
    ranks_sheet,
)
from tests.comparison.made_up import CURVES, made_up_cases, made_up_comparison


def with_hole(cases: pandas.DataFrame, controls: tuple[str, ...] = ()) -> Comparison:
    """``mae`` lacks a fold at 3 labelled cases."""
    whole = made_up_comparison(cases, controls)
    cells = whole.cells.copy()
    holed = (cells["arm"] == "mae") & (cells["labelled"] == 3)
    cells.loc[holed, ["mean", "low", "high"]] = math.nan
    cells.loc[holed, "hole"] = "fold 2: training has not ended"
    hole = {"dataset": "Dataset004_Hippocampus", "labelled": 3, "fold": "2", "repeat": 0}
    hole |= {"arm": "mae", "replicate": "", "what": "training has not ended"}
    return made_up_comparison(cases, controls, cells=cells, holes=pandas.DataFrame([hole]))


def printed(comparison: Comparison, width: int = 100) -> str:
    stream = io.StringIO()
    print_comparison(comparison, Console(width=width, file=stream))
    return stream.getvalue()


def test_a_mean_stands_with_its_interval_and_its_numbers() -> None:
    cases = made_up_cases(("scratch", "mae"), subjects=8)
    comparison = made_up_comparison(cases)
    sheet = means_sheet(comparison)
    assert sheet.header == ("arm", "Dice", "NSD", "HD95, mm", "subjects", "replicates")
    cell = comparison.cells[(comparison.cells["arm"] == "mae") & (comparison.cells["metric"] == "dice")].iloc[0]
    row = sheet.groups[0][1][1]
    assert row[0] == "mae" and row[1] == f"{cell['mean']:.3f}\n[{cell['low']:.3f}, {cell['high']:.3f}]"
    assert row[4:] == ("8", "1")


def test_titles_promise_intervals_only_where_there_are_some() -> None:
    cases = made_up_cases(("scratch", "mae"), datasets=("Dataset001_A", "Dataset002_B"))

    def titles(without: set[str]) -> set[str]:
        whole = made_up_comparison(cases)
        parts = {name: getattr(whole, name).copy() for name in ("cells", "labels")}
        for table in parts.values():
            table.loc[table["dataset"].isin(without), ["low", "high"]] = math.nan
        comparison = made_up_comparison(cases, **parts)
        sheets = means_sheet(comparison), labels_sheet(comparison)
        return {sheet.title.partition("with")[2] for sheet in sheets if sheet is not None}

    assert titles(set()) == {" 95 % intervals"}
    assert titles({"Dataset001_A"}) == {" 95 % intervals where there are enough subjects"}
    assert titles({"Dataset001_A", "Dataset002_B"}) == {""}


def test_a_hole_is_said_in_its_cell_and_listed() -> None:
    comparison = with_hole(made_up_cases(("scratch", "mae"), (1, 3)))
    rows = dict(means_sheet(comparison).groups)["Dataset004_Hippocampus, 3 labelled"]
    assert rows[1][:4] == ("mae", "missing: fold 2", "–", "–")
    assert rows[0][1].startswith("0.")
    shown = printed(comparison)
    assert "missing: fold 2" in shown and "mae, Dataset004_Hippocampus, 3 labelled, fold 2" in shown
    assert "missing: fold 2 &" in latex(comparison)


def test_without_a_control_the_tables_say_how_to_get_differences() -> None:
    cases = made_up_cases(("scratch", "mae"))
    shown = printed(made_up_comparison(cases))
    assert "--control" in shown and "Difference to" not in shown
    assert pairs_sheet(made_up_comparison(cases)) is None
    shown = printed(made_up_comparison(cases, ["scratch"]))
    assert "Difference to scratch" in shown and "mae against scratch, Dataset004_Hippocampus:" in shown


def test_without_tests_there_is_no_column_of_p_values() -> None:
    comparison = made_up_comparison(made_up_cases(("scratch", "mae")), ["scratch"])
    sheet = pairs_sheet(comparison)
    assert sheet is not None and "p (Holm)" in sheet.header
    pairs = comparison.pairs.assign(p_holm=math.nan, low=math.nan, high=math.nan)
    sheet = pairs_sheet(made_up_comparison(made_up_cases(("scratch", "mae")), ["scratch"], pairs=pairs))
    assert sheet is not None and "p (Holm)" not in sheet.header and "[" not in sheet.groups[0][1][0][1]


def test_ranks_are_sorted_and_labels_shown_one_by_one() -> None:
    cases = made_up_cases(("scratch", "mae"))
    ranks = pandas.DataFrame({"metric": "dice", "arm": ["scratch", "mae"], "rank": [2.0, 1.0], "n_datasets": 2})
    ranks.insert(0, "labelled", pandas.array([None, None], dtype="Int64"))
    sheet = ranks_sheet(made_up_comparison(cases, ranks=ranks))
    assert sheet is not None and sheet.groups[0][0] == "2 datasets"
    assert [row[:2] for row in sheet.groups[0][1]] == [("mae", "1.00"), ("scratch", "2.00")]
    sheet = labels_sheet(made_up_comparison(cases))
    assert sheet is not None and {row[0] for row in sheet.groups[0][1]} == {"anterior", "posterior"}
    assert labels_sheet(made_up_comparison(made_up_cases(("mae",), labels=["one"]))) is None


def test_failures_and_notes_are_printed_and_long_lists_are_cut_with_a_word() -> None:
    cases = made_up_cases(("mae",))
    failures = pandas.DataFrame(
        [
            {"dataset": "D", "arm": "mae", "replicate": "mae", "fold": "0", "case": f"c{n}", "failure": "no prediction"}
            for n in range(20)
        ]
    )
    shown = printed(made_up_comparison(cases, failures=failures))
    assert "case c0: no prediction" in shown and "and 4 more" in shown and "A note." in shown


def test_names_that_look_like_markup_are_printed_as_they_are() -> None:
    cases = made_up_cases(("[bold]arm[/bold]",))
    assert "[bold]arm[/bold]" in printed(made_up_comparison(cases))


def test_latex_escapes_what_means_something_to_latex() -> None:
    assert escape_latex("a_b & 50 % of #1 {x} ~^$ \\") == (
        r"a\_b \& 50 \% of \#1 \{x\} \textasciitilde{}\textasciicircum{}\$ \textbackslash{}"
    )
    assert escape_latex("α\x00") == "??"


def test_latex_tables_are_whole() -> None:
    arms = ("scratch_1", "mae 50%", "s3d & co")
    cases = made_up_cases(arms, (1, 10), ("Dataset001_A", "Dataset002_B"))
    text = latex(made_up_comparison(cases, ["scratch_1"], notes=("A note\nof two lines with 5 %.",)))
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert all("two lines" not in line for line in lines), "a note of two lines must stay a comment"
    body = "\n".join(lines)
    for environment in ("table", "tabular"):
        assert body.count(f"\\begin{{{environment}}}") == body.count(f"\\end{{{environment}}}") == 3
    assert body.count("\\toprule") == body.count("\\bottomrule") == 3
    assert not re.search(r"(?<!\\)[_%#]", body), "an unescaped sign would stop LaTeX"
    for table in body.split("\\begin{tabular}")[1:]:
        columns = len(table[1 : table.index("}")])
        rows = [line for line in table.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)


def test_markdown_tables_have_a_column_for_each_heading_and_say_what_is_missing() -> None:
    text = markdown(with_hole(made_up_cases(("scratch", "mae"), (1, 3)), ("scratch",)))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "missing: fold 2" in text and "**Missing runs**" in text and "### Difference" in text
    table = rows[: next(i for i, line in enumerate(rows) if i > 2 and line.startswith("| arm"))]
    assert len({line.count("|") for line in table}) == 1, "every row has as many cells as the heading"


def test_csv_files_have_a_header_even_without_rows() -> None:
    cases = made_up_cases(("mae",))
    files = csv_files(made_up_comparison(cases), cases, pandas.DataFrame(columns=CURVES))
    assert set(files) >= {"cases.csv", "means.csv", "ranks.csv", "pairs.csv", "holes.csv"}
    assert files["holes.csv"].to_csv(index=False).startswith("dataset,labelled,fold")
