"""Rules: what a user may write does what it says; everything else is one sentence, and is never run."""

from __future__ import annotations

import io
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nnssl_mae.catalogue.lock import writing_alone
from nnssl_mae.catalogue.rules import add_rule, apply_rules, effects, notes, parse_where, print_rules, remove_rules
from nnssl_mae.catalogue.table import Catalogue, ScanRow, read_catalogue, write_catalogue
from nnssl_mae.errors import UserError


def row(case: str, modality: str = "T1w", spacing: float = 1.0, **values) -> ScanRow:
    """An accepted scan with cubic voxels."""
    return ScanRow(
        path=f"/scans/{case}.nii.gz",
        series="",
        frame="",
        case=case,
        dataset="study",
        subject=case.split("_")[0],
        subject_from="bids",
        session="",
        modality=modality,
        format="nifti",
        min_spacing=spacing,
        **values,
    )


def table(*rows: ScanRow) -> pandas.DataFrame:
    return pandas.DataFrame([asdict(one) for one in rows])


SCANS = table(
    row("sub-01_T1w"),
    row("sub-02_T1w", spacing=4.0),
    row("sub-03_T2w", "T2w", size_x=256, size_y=256, size_z=20),
    row("sub-04_FLAIR", "FLAIR", spacing=math.nan, size_x=192),
    row("sub-05", "", spacing=2.0),
)


def found(where: str) -> str:
    """The numbers of the scans that fulfil a condition."""
    return "".join(str(number) for number in np.flatnonzero(parse_where(where).matches(SCANS)) + 1)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("modality == 'T1w' and min_spacing < 3", "1"),
        ("modality == 'T1w' or modality == 'T2w'", "123"),
        ("not modality == 'T1w'", "345"),
        ("modality in ['T1w', 'FLAIR']", "124"),
        ("modality not in ('T1w', 'FLAIR')", "35"),
        ("modality.isin(['T2w'])", "3"),
        ("modality.str.contains('^T[12]')", "123"),
        ("modality.str.lower() == 't2w'", "3"),
        ("modality.str.lower().str.startswith('t')", "123"),
        ("path.str.endswith('_FLAIR.nii.gz')", "4"),
        (r"case.str.contains('sub-0\d_')", "1234"),
        ("min_spacing.between(1, 2)", "135"),
        ("1 < min_spacing <= 4", "25"),
        ("size_x * size_y * size_z / 2 > 10 ** 5", "3"),
        ("size_x > -1 + 2 * 100", "3"),
        ("bytes in [-1, 0]", "12345"),
        ("modality == ''", "5"),
        ("'T2w' == modality", "3"),
    ],
)
def test_a_condition_finds_what_it_says(where: str, expected: str) -> None:
    assert found(where) == expected


def test_an_unknown_number_is_neither_below_nor_above_but_can_be_asked_for() -> None:
    assert "4" not in found("min_spacing < 3") + found("min_spacing >= 3")
    assert "4" in found("not min_spacing < 3") and "4" in found("min_spacing != 3")
    assert found("min_spacing.isna()") == "4" and found("min_spacing.notna()") == "1235"


def test_capital_letters_count_and_quotes_inside_texts_survive() -> None:
    assert found("modality == 't1w'") == ""
    quoted = table(row("a", 'it\'s "1"`@x`'))
    assert parse_where("modality == 'it\\'s \"1\"`@x`'").matches(quoted).all()


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("__import__('os').system('true')", "__import__('os').system"),
        ("case.__class__ == 'a'", "case.__class__"),
        ("case.str.__class__.__mro__ == 'a'", "case.str.__class__.__mro__"),
        ("case.to_csv('stolen')", "case.to_csv"),
        ("case.str.cat() == 'a'", "case.str.cat"),
        ("case.str == 'a'", "case.str"),
        ("@case == 'a'", "@case"),
        ("mean @ std > 1", "mean @ std"),
        ("(lambda: 1)() == 1", "lambda"),
        ("[x for x in case] == 1", "for x in case"),
        ("min_spacing < (3 if mean > 2 else 4)", "3 if mean"),
        ("(case := 'a') == 'a'", "case := 'a'"),
        ("f'{case}' == 'a'", "f'{case}'"),
        ("case['a'] == 'a'", "case['a']"),
        ("min_spacing == {1: 2}", "{1: 2}"),
        ("case.str.contains(pat='a')", "pat='a'"),
        ("case.str.contains(*['a'])", "['a']"),
        ("case.isin(path)", "path"),
        ("min_spacing << 3 > 1", "min_spacing << 3"),
        ("(mean > 1) & (std > 1)", "write and"),
        ("~(mean > 1)", "write not"),
        ("case is 'a'", "write =="),
        ("min_spacing = 3", "=="),
        ("min_spacing == None", "None"),
        ("min_spacing == True", "True"),
        ("min_spacing == 1j", "1j"),
        ("min_spacing < '3'", "a number with a text"),
        ("frame == 1", "a text with a number"),
        ("'a' * 9 == case", "'a'"),
        ("modality + case == 'a'", "modality"),
        ("modality in ['T1w', 2]", "2 is a number"),
        ("modality in 'T1w'", "no list"),
        ("modality in []", "no list"),
        ("1 < 2", "no column"),
        ("min_spacing", "is a number, not a condition"),
        ("min_spacing and mean > 1", "min_spacing is a number"),
        ("(mean > 1) == (std > 1)", "compares a condition"),
        ("min_spacing.str.contains('a')", "min_spacing is a number"),
        ("modality.between('a', 'b')", "modality is a text"),
        ("min_spacing.between(1)", "two numbers"),
        ("case.isna(1)", "nothing"),
        ("case.str.contains('(')", "no regular expression"),
        ("case.str.contains('(?=a)b')", "no regular expression"),
        (r"case.str.contains('(a)\\1')", "no regular expression"),
        ("case.str.contains('\\bT1')", "backslash twice"),
        ("mean > 1e400", "too large"),
        ("verdict == 'accepted'", "what the rules decide"),
        ("min_spacin < 3", "did you mean 'min_spacing'"),
        ("modality == T1w", "T1w is no column"),
        ("", "cannot be read"),
        ("mean > 1; import os", "cannot be read"),
        ("mean\0 > 1", "cannot be read"),
        ("not " * 400 + "mean > 1", "nested"),
        ("-" * 1900 + "mean > 1", "nested"),
        ("(" * 900 + "mean > 1" + ")" * 900, "cannot be read"),
        ("mean > 1 or " * 300 + "mean > 1", "2000 characters"),
    ],
)
def test_what_is_not_allowed_is_refused_in_a_sentence_that_names_it(where: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_where(where)
    assert named in str(caught.value)


@pytest.mark.parametrize("where", ["mean > 9**9**9**9", "mean > 1 / 0", "mean ** 9 ** 9 ** 9 > 1", "mean > 1 % 0"])
def test_constants_that_cannot_be_worked_out_end_at_once(where: str) -> None:
    with pytest.raises(UserError, match="cannot be worked out"):
        parse_where(where).matches(SCANS)


def test_a_pattern_that_would_hang_a_backtracking_search_does_not() -> None:
    long = table(row("a" * 5000 + "!"))
    assert not parse_where("case.str.contains('^(a+)+$')").matches(long).any()


def test_large_whole_numbers_do_not_wrap() -> None:
    large = table(row("a", bytes=2**40))
    assert parse_where("bytes * bytes > 0 and bytes ** 3 > 0").matches(large).all()


_ATOMS = """min_spacing mean size_x modality case 3 0 -1.5 'T1w' '' ['T1w','x'] [1,2] True None x __class__ 9**9"""
_OPERATORS = "== != < >= in and or + * ** % // @ & is"
_SHAPES = [
    *(f"({{0}}) {operator} ({{1}})" for operator in _OPERATORS.split()),
    *("not ({0})", "-({0})", "{0}.str.contains({1})", "{0}.isin({1})", "{0}.isna()", "{0}.between(0, {1})"),
    *("{0}.{1}", "{0}({1})", "{0}.str.lower()", "lambda: {0}", "{0} if {1} else 1", "{0} < {1} < {0}"),
]
_EXPRESSIONS = st.recursive(
    st.sampled_from(_ATOMS.split()),
    lambda inner: st.builds(str.format, st.sampled_from(_SHAPES), inner, inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(_EXPRESSIONS, st.text(max_size=60)))
def test_any_text_is_a_condition_or_a_sentence(where: str) -> None:
    try:
        result = parse_where(where).matches(SCANS)
    except UserError as error:
        assert str(error)
    else:
        assert result.shape == (len(SCANS),) and result.dtype == bool


_CONDITIONS = st.recursive(
    st.sampled_from(
        [
            "min_spacing < 3",
            "size_x ** 2 >= 192 * size_x",
            "modality in ['T1w', '']",
            "case > 'sub-03'",
            "1 <= mean + 1",
        ]
    ),
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(_CONDITIONS)
def test_a_condition_means_what_python_says_of_each_scan(where: str) -> None:
    expected = [eval(where, {"__builtins__": {}}, scan) for scan in SCANS.to_dict("records")]
    assert parse_where(where).matches(SCANS).tolist() == expected


def catalogue(rows: pandas.DataFrame = SCANS, *rules: tuple[str, str]) -> Catalogue:
    return Catalogue(rows, {"rules": [{"kind": kind, "where": where} for kind, where in rules]})


def test_without_rules_every_scan_that_passed_the_checks_is_accepted() -> None:
    rows = table(row("a", verdict="rejected", rule="old"), row("b", check="empty", verdict="accepted"))
    applied = apply_rules(Catalogue(rows))
    assert applied.rows["verdict"].tolist() == ["accepted", "rejected"]
    assert applied.rows["rule"].tolist() == ["", ""]
    assert rows["rule"].tolist() == ["old", ""]  # the table given is not changed


def test_one_include_rule_is_enough_and_one_exclude_rule_is_too_much() -> None:
    rules = [("include", "modality == 'T1w'"), ("include", "modality == 'T2w'"), ("exclude", "min_spacing > 3")]
    applied = apply_rules(catalogue(SCANS, *rules))
    assert applied.accepted["case"].tolist() == ["sub-01_T1w", "sub-03_T2w"]
    reasons = dict(zip(applied.rows["case"], applied.rows["rule"], strict=True))
    assert reasons["sub-02_T1w"] == "exclude min_spacing > 3"
    assert reasons["sub-05"] == "include modality == 'T1w'; include modality == 'T2w'"


def test_no_rule_takes_back_a_check() -> None:
    applied = apply_rules(catalogue(table(row("a", check="empty")), ("include", "modality == 'T1w'")))
    assert applied.accepted.empty and applied.rows["rule"].tolist() == [""]


def test_effects_count_every_scan_left_out_once() -> None:
    rules = [("exclude", "modality == 'T1w'"), ("exclude", "min_spacing > 3"), ("include", "modality != ''")]
    applied = apply_rules(catalogue(SCANS, *rules))
    told = [(effect.number, effect.matches, effect.rejects) for effect in effects(applied)]
    assert told == [(1, 2, 2), (2, 1, 0), (3, 4, 1)]
    assert sum(effect.rejects for effect in effects(applied)) == (applied.rows["verdict"] == "rejected").sum()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_catalogue(tmp_path, Catalogue(SCANS, {"roots": ["/scans"]}))
    return tmp_path


def test_rules_are_recorded_in_the_catalogue_and_can_be_removed(folder: Path) -> None:
    add_rule(folder, "include", "modality == 'T1w'")
    returned = add_rule(folder, "exclude", "  min_spacing > 3 ")
    stored = read_catalogue(folder)
    assert stored.settings == {
        "roots": ["/scans"],
        "rules": [
            {"kind": "include", "where": "modality == 'T1w'"},
            {"kind": "exclude", "where": "min_spacing > 3"},
        ],
    }
    assert stored.accepted["case"].tolist() == returned.accepted["case"].tolist() == ["sub-01_T1w"]
    remove_rules(folder, 1)
    assert "sub-03_T2w" in read_catalogue(folder).accepted["case"].tolist()
    remove_rules(folder, None)
    assert len(read_catalogue(folder).accepted) == len(SCANS)


def test_the_same_rule_twice_stands_once(folder: Path) -> None:
    add_rule(folder, "exclude", "min_spacing > 3")
    assert len(effects(add_rule(folder, "exclude", "min_spacing > 3"))) == 1


def test_a_refused_rule_leaves_the_catalogue_as_it_was(folder: Path) -> None:
    before = (folder / "catalogue.parquet").read_bytes()
    for kind, where in (("exclude", "nonsense == 1"), ("excluded", "mean > 1"), ("exclude", "mean > 1 / 0")):
        with pytest.raises(UserError):
            add_rule(folder, kind, where)
    with pytest.raises(UserError, match="no rule 1; it has no rules"):
        remove_rules(folder, 1)
    assert (folder / "catalogue.parquet").read_bytes() == before


def test_a_damaged_list_of_rules_is_a_sentence_and_can_be_cleared(tmp_path: Path) -> None:
    write_catalogue(tmp_path, Catalogue(SCANS, {"rules": ["exclude everything"]}))
    with pytest.raises(UserError, match="damaged"):
        add_rule(tmp_path, "exclude", "mean > 1")
    assert len(remove_rules(tmp_path).accepted) == len(SCANS)


def test_rules_that_match_nothing_or_leave_nothing_are_said(folder: Path) -> None:
    nothing = add_rule(folder, "exclude", "modality == 'PET'")
    assert notes(nothing) == ["Rule 1 (exclude modality == 'PET') matches none of the 5 scans that passed the checks."]
    everything = add_rule(folder, "exclude", "case != ''")
    assert any("leave no scan" in note for note in notes(everything))
    console = Console(file=io.StringIO(), width=200)
    print_rules(everything, console)
    printed = console.file.getvalue()
    assert "2. exclude case != '': matches 5, leaves out 5" in printed and "leave no scan" in printed


def printed(catalogue: Catalogue, before: Catalogue | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    print_rules(catalogue, console, before)
    return console.file.getvalue().splitlines()


def test_an_empty_catalogue_takes_rules(tmp_path: Path) -> None:
    write_catalogue(tmp_path, Catalogue(SCANS.iloc[:0]))
    assert add_rule(tmp_path, "exclude", "modality == 'T1w' and min_spacing < 3").accepted.empty


def test_the_copy_of_a_scan_that_a_rule_leaves_out_is_no_duplicate_any_more() -> None:
    pair = table(row("a", voxel_hash="same"), row("b", voxel_hash="same", check="duplicate", detail="of a"), row("c"))
    applied = apply_rules(catalogue(pair)).rows
    assert list(applied["check"]) == ["", "duplicate_subject", ""] and "voxels of a" in applied["detail"].iloc[1]
    applied = apply_rules(catalogue(pair, ("exclude", "case == 'a'"))).rows
    assert list(applied["verdict"]) == ["rejected", "accepted", "accepted"]
    assert list(applied["check"]) == ["", "", ""]
    again = apply_rules(Catalogue(applied)).rows
    assert list(again["verdict"]) == ["accepted", "rejected", "accepted"]


def test_duplicates_that_come_back_are_said_so_that_the_numbers_add_up(tmp_path: Path) -> None:
    rows = [
        row("a", "PDw", voxel_hash="1"),
        row("b", "T1w", voxel_hash="1"),
        row("c", "T2w", voxel_hash="2"),
        row("d", "T2w", voxel_hash="2"),
        row("e"),
    ]
    before = apply_rules(Catalogue(table(*rows)))
    write_catalogue(tmp_path, before)
    after = add_rule(tmp_path, "include", "modality == 'T1w'")
    assert printed(after, before) == [
        "1. include modality == 'T1w': matches 2, leaves out 3",
        "1 comes back: the copy that was kept before is left out now.",
        "1 of those that the rules leave out was a duplicate before.",
        "2 of 5 scans are accepted.",
    ]
    assert len(before.accepted) + 1 + 1 - 3 == len(after.accepted)
    assert len(printed(after)) == len(printed(after, after)) == 2  # nothing has just happened


def test_two_that_come_back(tmp_path: Path) -> None:
    pairs = [row(f"{name}{n}", voxel_hash=str(n)) for name in "ab" for n in range(2)]
    before = apply_rules(Catalogue(table(*pairs)))
    write_catalogue(tmp_path, before)
    after = add_rule(tmp_path, "exclude", "case.str.startswith('a')")
    assert "2 come back: the copies that were kept before are left out now." in printed(after, before)


def test_a_rule_waits_for_a_scan_that_would_undo_it(tmp_path) -> None:
    write_catalogue(tmp_path, Catalogue(SCANS))
    with writing_alone(tmp_path), pytest.raises(UserError, match="Another process is writing"):
        add_rule(tmp_path, "exclude", "min_spacing > 3")
    assert len(add_rule(tmp_path, "exclude", "min_spacing > 3").accepted) == 4
