"""``nnssl-mae compare`` on result folders as nnU-Net leaves them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest

from nnssl_mae import cli
from tests.comparison.results import write_few_label_map, write_run, write_test_predictions

DATASET, TRAINER, CONFIGURATION = "Dataset004_Tiny", "nnUNetTrainerOfOthers", "3d_fullres"
SPACING = (1.0, 1.0, 1.0)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the verb in this process; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "110")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnssl-mae", "compare", *map(str, arguments), "-np", "1"])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def volumes(missed: int, fold: int = 0, count: int = 7) -> tuple[dict, dict]:
    """References, each a cube, and predictions that miss some of its slices (case by case one more or less)."""
    references, predictions = {}, {}
    for number in range(count):
        truth = np.zeros((8, 8, 8), dtype=np.uint8)
        truth[1:7, 2:6, 2:6] = 1
        answer = truth.copy()
        answer[1 : 1 + missed + number % 2] = 0
        references[f"case_{fold}{number}"], predictions[f"case_{fold}{number}"] = truth, answer
    return references, predictions


def model(root: Path, plans: str, missed: int, fold: int = 0, **options) -> Path:
    references, predictions = volumes(missed, fold)
    return write_run(root, DATASET, TRAINER, plans, CONFIGURATION, fold, references, predictions, SPACING, **options)


def test_the_whole_command(root: Path, compare: Command) -> None:
    log = "x: Epoch 0 \nx: train_loss 0.1\nx: val_loss 0.1\nx: Pseudo dice [np.float32(0.5)] \n"
    for plans, missed in (("good", 1), ("poor", 3)):
        folder = model(root, plans, missed)
        (folder / "training_log_2026_1_1_00_00_00.txt").write_text(log)
    arms = ("--arm", "mae=*__good__*", "--arm", "scratch=*__poor__*", "--control", "scratch")
    code, said, error = compare("-d", 4, *arms, "-o", root / "out")
    assert (code, error) == (0, "")
    assert "mae against scratch" in said and "better than scratch" in said
    assert "not checked" in said and "--exclude-dataset" in said and "No run is missing." in said
    pairs = pandas.read_csv(root / "out" / "pairs.csv").set_index("metric")
    # Of six slices, 1 or 2 and 3 or 4 are missed: Dice 10/11 or 8/10 and 6/9 or 4/8, better in all seven cases.
    expected = (4 * (10 / 11 - 6 / 9) + 3 * (8 / 10 - 4 / 8)) / 7
    assert pairs.loc["dice", "difference"] == pytest.approx(expected)
    assert pairs.loc["dice", "better"] == 7 and pairs.loc["hd95", "better"] == 7
    assert {path.stem for path in (root / "out" / "figures").glob("*.svg")} == {"differences_to_scratch", "convergence"}
    assert pandas.read_csv(root / "out" / "convergence.csv")["step"].tolist() == [250, 250]
    assert "<html" in (root / "out" / "compare.html").read_text(encoding="utf-8")
    code, said, _ = compare("-d", 4, "-o", root / "out")  # again, other arms, into the same folder
    assert code == 0 and "--control" in said and f"{TRAINER}__good__{CONFIGURATION}" in said


def test_a_fold_that_did_not_end_is_a_hole_and_not_a_smaller_mean(root: Path, compare: Command) -> None:
    for plans, missed in (("good", 1), ("poor", 3)):
        model(root, plans, missed)
        model(root, plans, missed, fold=1, finished=False)
    arms = ("--arm", "mae=*__good__*", "--arm", "scratch=*__poor__*", "--control", "scratch")
    code, said, error = compare("-d", 4, *arms, "-o", root / "out")
    assert (code, error) == (0, "")
    assert "missing: fold 1" in said and "training has not ended" in said
    means = pandas.read_csv(root / "out" / "means.csv")
    assert means["mean"].isna().all() and means["hole"].str.contains("fold 1").all()
    assert len(pandas.read_csv(root / "out" / "holes.csv")) == 2
    assert "better than" not in said
    code, said, _ = compare("-d", 4, *arms, "--fold", 0, "-o", root / "out")
    assert code == 0 and "better than scratch" in said


def test_few_label_folds_make_a_curve(root: Path, compare: Command) -> None:
    references, _ = volumes(1)
    for plans, gain in (("good", 1), ("poor", 0)):
        for fold, missed in ((100, 3), (101, 2)):
            _, predictions = volumes(missed - gain)
            write_run(root, DATASET, TRAINER, plans, CONFIGURATION, fold, references, predictions, SPACING)
    folds = {"100": {"labelled": 1, "repeat": 0}, "101": {"labelled": 3, "repeat": 0}}
    write_few_label_map(root, DATASET, folds, {case: case for case in references})
    code, said, _ = compare("-d", 4, "--control", f"{TRAINER}__poor__{CONFIGURATION}", "-o", root / "out")
    assert code == 0 and f"{DATASET}, 1 labelled" in said and f"{DATASET}, 3 labelled" in said
    assert (root / "out" / "figures" / "few_labels.png").is_file()


def test_predictions_of_a_test_set(root: Path, compare: Command) -> None:
    references, good = volumes(1)
    _, poor = volumes(3)
    write_test_predictions(root / "truth", references, SPACING)
    write_test_predictions(root / "good", good, SPACING)
    write_test_predictions(root / "poor", {name: poor[name] for name in list(poor)[1:]}, SPACING)
    given = ("--predictions", f"mae={root / 'good'}", "--predictions", f"scratch={root / 'poor'}")
    code, said, error = compare(*given, "--references", root / "truth", "--control", "scratch", "-o", root / "out")
    assert (code, error) == (0, "")
    assert "better than scratch" in said and "case case_00: no prediction" in said
    failed = pandas.read_csv(root / "out" / "cases.csv", keep_default_na=False).query("failure != ''")
    assert failed["dice"].astype(float).tolist() == [0.0]


def test_which_cases_were_measured_is_said(root: Path, compare: Command) -> None:
    for fold in (0, 1):
        model(root, "good", 1, fold)
    sentence = f"Cases: 14 validation cases of {DATASET} (folds 0 to 1)."
    for arguments in (("-d", 4, "-o", root / "out"), ("--from", root / "out", "-o", root / "again")):
        code, said, _ = compare(*arguments)
        assert code == 0 and sentence in said
        assert sentence in (arguments[-1] / "compare.html").read_text().split("<table")[0], "it stands at the top"
    code, said, _ = compare("-d", 4, "--fold", 1, "-o", root / "one")
    assert code == 0 and f"Cases: 7 validation cases of {DATASET} (fold 1)." in said
    references, predictions = volumes(1)
    write_test_predictions(root / "truth", references, SPACING)
    write_test_predictions(root / "mae", predictions, SPACING)
    code, said, _ = compare("--predictions", f"mae={root / 'mae'}", "--references", root / "truth", "-o", root / "test")
    assert code == 0 and "Cases: 7 test cases of " in said and "(--predictions)." in said


def test_pre_trained_weights_that_a_trainer_never_loads_are_warned_of(root: Path, compare: Command) -> None:
    for plans, initialisation in (("good", {"file": "x"}), ("poor", None)):
        file = model(root, plans, 1).parent / "plans.json"
        block = {"nnssl_mae": {"kind": "finetune", "initialisation": initialisation}}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"configurations": {CONFIGURATION: block}}))
    for arguments in (("-d", 4, "-o", root / "out"), ("--from", root / "out", "-o", root / "again")):
        code, said, _ = compare(*arguments)
        assert code == 0 and said.count("Warning: ") == 1
        assert f"the plans of {TRAINER}__good__{CONFIGURATION} (arm " in said
        assert f"its trainer {TRAINER} never loads them" in said and "-pretrained_weights" in said
        page = (arguments[-1] / "compare.html").read_text()
        assert "never loads them" in page.split("<table")[0], "it stands at the top"
    log = root / "results" / DATASET / f"{TRAINER}__good__{CONFIGURATION}" / "fold_0" / "training_log_1.txt"
    log.write_text("2026-11-22 03:10:08.9: Pre-trained weights: encoder of checkpoint_final.pth \n")
    code, said, _ = compare("-d", 4, "-o", root / "derived")  # a trainer of somebody's, derived from ours
    assert code == 0 and "Warning" not in said


@pytest.mark.parametrize(
    ("initialisation", "sentence"),
    [
        (None, "trained from scratch by its plans"),
        ({"origin": {"excluded_datasets": [DATASET, "Dataset007_Other"]}}, f"scans of {DATASET} were kept out"),
        ({"origin": {"excluded_datasets": ["Dataset007_Other"]}}, "was not checked"),
        ({"origin": {}}, "was not checked"),
        ({"origin": None}, "was not checked"),
        ("nonsense", "was not checked"),
    ],
)
def test_what_the_plans_say_of_overlap_is_printed(
    root: Path, compare: Command, initialisation: dict[str, object] | None, sentence: str
) -> None:
    file = model(root, "good", 1).parent / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"] = {CONFIGURATION: {"nnssl_mae": {"kind": "finetune", "initialisation": initialisation}}}
    file.write_text(json.dumps(plans))
    code, said, _ = compare("-d", 4, "-o", root / "out")
    assert code == 0 and sentence in " ".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-d", 4, "--arm", "mae"], "not NAME=VALUE"),
        (["-d", 4, "--arm", "a=*", "--arm", "a=x"], "given twice"),
        (["-d", 4, "--arm", "mae=*__none__*"], "matches no model"),
        (["-d", 4, "--control", "scratch"], "--control scratch is no arm"),
        (["-d", 4, "--predictions", "a=b"], "without --references"),
        (["-d", 4, "-d", 5, "--predictions", "a=b", "--references", "."], "one -d"),
        (["-d", 4, "--arm", "a=*", "--predictions", "a=b", "--references", "."], "leave them out"),
        ([], "nothing to compare"),
    ],
)
def test_bad_requests_get_a_sentence_and_write_nothing(
    root: Path, compare: Command, arguments: list[object], sentence: str
) -> None:
    model(root, "good", 1)
    code, _, error = compare(*arguments, "-o", root / "out")
    assert code == 2 and sentence in error and error.count("\n") == 1
    assert not (root / "out").exists()


def test_what_was_measured_gives_the_same_comparison_again_without_images(root: Path, compare: Command) -> None:
    for plans, missed in (("good", 1), ("poor", 3)):
        model(root, plans, missed)
    model(root, "good", 1, fold=1)  # the other arm has none: a hole
    arms = ("--arm", "mae=*__good__*", "--arm", "NA=*__poor__*", "--control", "NA")
    code, said, _ = compare("-d", 4, *arms, "-o", root / "out")
    assert code == 0 and "fold 1" in said
    copied = root / "elsewhere"
    copied.mkdir()
    for name in ("cases.csv", "convergence.csv", "measured.json"):
        shutil.copy(root / "out" / name, copied)
    shutil.rmtree(root / "results")
    code, again, error = compare("--from", copied, "--control", "NA", "-o", root / "again")
    assert (code, error) == (0, "")
    for name in ("means.csv", "pairs.csv", "ranks.csv", "holes.csv", "tables.md", "table.tex", "cases.csv"):
        assert (root / "again" / name).read_bytes() == (root / "out" / name).read_bytes(), name
    assert again.split("Means", 1)[1].split("Open")[0] == said.split("Means", 1)[1].split("Open")[0]
    code, _, error = compare("--from", copied, "-d", 4, "-o", root / "third")
    assert code == 2 and "leave out" in error
    code, said, _ = compare("--from", copied, "--seed", 5, "-o", root / "seeded")
    assert code == 0 and "seed 5" in said and "seed 0" not in said
    assert compare("--from", copied, "--tolerance", 3, "-o", root / "third")[0] == 2
    rest = json.loads((copied / "measured.json").read_text())
    for key, nonsense in {"unfinished": 3, "overlap": [], "about": {"title": "x"}, "order": None}.items():
        (copied / "measured.json").write_text(json.dumps(rest | {key: nonsense}))
        code, _, error = compare("--from", copied, "-o", root / "third")
        assert code == 2 and "damaged comparison" in error and not (root / "third").exists(), key
    (copied / "measured.json").write_text(json.dumps(rest))
    (copied / "cases.csv").write_text((copied / "cases.csv").read_text().replace("0.", "0.0"))
    code, _, error = compare("--from", copied, "-o", root / "third")
    assert code == 2 and "changed ones" in error


def test_a_replicate_that_was_begun_does_not_vanish_where_numbers_may_differ(root: Path, compare: Command) -> None:
    for plans in ("good_1", "good_2", "poor"):
        model(root, plans, 1)
    unfinished = root / "results" / DATASET / f"{TRAINER}__good_2__{CONFIGURATION}" / "fold_0"
    (unfinished / "checkpoint_final.pth").rename(unfinished / "checkpoint_latest.pth")
    arms = ("--arm", "mae=*__good_*", "--arm", "scratch=*__poor__*", "--control", "scratch", "--uneven-replicates")
    code, said, _ = compare("-d", 4, *arms, "-o", root / "out")
    assert code == 0 and "training has not ended" in said and "no verdict" in said


def test_names_with_dollar_signs_are_drawn_as_they_are(root: Path, compare: Command) -> None:
    model(root, "good", 1)
    model(root, "poor", 3)
    arms = ("--arm", r"$\frac{$=*__good__*", "--arm", "scratch=*__poor__*", "--control", "scratch")
    assert compare("-d", 4, *arms, "-o", root / "out")[0] == 0


def test_a_folder_of_something_else_is_refused(root: Path, compare: Command) -> None:
    model(root, "good", 1)
    code, _, error = compare("-d", 4, "-o", root / "results")
    assert code == 2 and "no comparison" in error
    assert {path.name for path in (root / "results").iterdir()} == {DATASET}
