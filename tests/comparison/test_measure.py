"""The table of cases: equal to nnU-Net's numbers, whole, and there at once the second time."""

from __future__ import annotations

import json
import math
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from rich.console import Console
from scipy import ndimage

from nnssl_mae.comparison import measure as measuring
from nnssl_mae.comparison import one_case
from nnssl_mae.comparison.measure import COLUMNS, MetricOptions, measure
from nnssl_mae.comparison.runs import HeldOut, Request, Run, find_runs
from nnssl_mae.errors import UserError
from tests.comparison.results import LABELS, write_labels, write_run, write_test_predictions

DATASET = "Dataset004_Tiny"
SPACING = (3.0, 1.0, 0.5)
QUIET = Console(quiet=True)
CUBE = np.zeros((6, 8, 10), np.uint8)
CUBE[2:4, 2:6, 2:6] = 1
MOVED = np.roll(CUBE, 1, axis=2)


def runs(
    root: Path, predictions: Any, references: Any = None, trainer: str = "nnUNetTrainer", **options: Any
) -> list[Run]:
    references = dict.fromkeys(predictions, CUBE) if references is None else references
    write_run(root, DATASET, trainer, "nnUNetPlans", "3d_fullres", 0, references, predictions, SPACING, **options)
    return list(find_runs(Request((4,))).runs)


def table(found: list[Run], cache: Path | None = None, workers: int = 1, **options: Any) -> pd.DataFrame:
    return measure(found, MetricOptions(**options), cache, workers, QUIET)


def noisy_labels(seed: int, labels: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(8, 9, 10)), 1.5)
    return np.digitize(noise, np.quantile(noise, np.linspace(0.4, 1, labels + 1)[:-1])).astype(np.uint8)


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "one": 1, "two": 2, "rare": 3},
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3},
        {"background": 0, "one": 1, "two": 2, "ignore": 3},
        {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    ],
    ids=["labels", "regions", "ignore", "regions and ignore"],
)
def test_dice_and_voxels_equal_nnunets_summary(
    nnunet_folders: Path, labels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary is that of nnU-Net's own function; threads do what its processes, slow to start, would do."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from tests.comparison.results import evaluated

    references = {f"case_{i}": noisy_labels(i, 3) for i in range(3)}
    predictions = {
        f"case_{i}": np.where(noisy_labels(9 + i, 3) % 2, noisy_labels(9 + i, 3), v)
        for i, v in enumerate(references.values())
    }
    references["case_2"][references["case_2"] == 2] = 0
    if "ignore" in labels:
        predictions = {case: np.where(values == 3, 0, values) for case, values in predictions.items()}
    (run,) = runs(nnunet_folders, predictions, references, labels=labels)
    targets, ignore = evaluated(labels)
    folders = str(run.references), str(run.predictions)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_predictions.multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
        summary = evaluate_predictions.compute_metrics_on_folder(
            *folders, None, SimpleITKIO(), ".nii.gz", targets, ignore, num_processes=1
        )
    mine = table([run]).set_index(["case", "label"])
    names = dict(zip(targets, [name for name in labels if name not in ("background", "ignore")], strict=True))
    for case in summary["metric_per_case"]:
        name = Path(case["prediction_file"]).name.removesuffix(".nii.gz")
        for target, theirs in case["metrics"].items():
            row = mine.loc[(name, names[target])]
            assert row["dice"] == pytest.approx(theirs["Dice"], nan_ok=True, abs=1e-12)
            assert row["voxels_reference"] == theirs["n_ref"]
            assert row["voxels_predicted"] == theirs["n_pred"]
    assert len(mine) == 3 * len(targets)


@pytest.mark.parametrize(("axis", "mm"), [(0, 3.0), (1, 1.0), (2, 0.5)])
def test_spacing_of_the_file_goes_with_its_axis(nnunet_folders: Path, axis: int, mm: float) -> None:
    """SimpleITK gives arrays as (z, y, x) and spacings as (x, y, z)."""
    (row,) = table(runs(nnunet_folders, {"a": np.roll(CUBE, 1, axis)})).to_dict("records")
    assert row["hd95"] == mm


def test_columns_types_and_keys(nnunet_folders: Path) -> None:
    cases = table(runs(nnunet_folders, {"a": MOVED, "b": CUBE}))
    assert tuple(cases.columns) == COLUMNS
    assert str(cases["labelled"].dtype) == str(cases["repeat"].dtype) == "Int64"
    assert cases["labelled"].isna().all()
    assert list(cases["case"]) == list(cases["subject"]) == ["a", "b"]
    assert set(cases["dataset"]) == {DATASET}
    assert set(cases["fold"]) == {"0"}
    assert (cases["failure"] == "").all()
    assert cases["lesion_f1"].isna().all()


def test_subjects_from_a_pattern(nnunet_folders: Path) -> None:
    found = runs(nnunet_folders, {"sub-1_a": CUBE, "sub-1_b": CUBE, "sub-2_a": CUBE})
    assert list(table(found, subject_regex="^(sub-[^_]+)_")["subject"]) == ["sub-1", "sub-1", "sub-2"]
    with pytest.raises(UserError, match="no subject in case 'sub-1_a'"):
        table(found, subject_regex="^patient")
    with pytest.raises(UserError, match="no regular expression"):
        table(found, subject_regex="(")


def test_lesions_only_where_asked(nnunet_folders: Path) -> None:
    labels = {"background": 0, "one": 1, "two": 2}
    found = runs(nnunet_folders, {"a": MOVED}, labels=labels, references={"a": CUBE, "b": CUBE})
    cases = table(found, lesions=("one",)).set_index(["case", "label"])["lesion_f1"]
    assert cases["a", "one"] == 1
    assert cases["b", "one"] == 0, "b was not predicted"
    assert math.isnan(cases["b", "two"])
    with pytest.raises(UserError, match="'lesion'"):
        table(found, lesions=("lesion",))


DIAGONAL = math.sqrt((6 * 3) ** 2 + 8**2 + (10 * 0.5) ** 2)


def break_prediction(run: Run, how: str) -> None:
    path = run.predictions / "a.nii.gz"
    if how == "no prediction":
        path.unlink()
    elif how == "unreadable":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "other grid":
        write_labels(path, CUBE[:, :, :-1], SPACING)
    elif how == "empty prediction":
        write_labels(path, np.zeros_like(CUBE), SPACING)


@pytest.mark.parametrize("how", ["no prediction", "unreadable", "other grid", "empty prediction"])
def test_a_failure_is_a_row_with_the_worst_scores(nnunet_folders: Path, how: str) -> None:
    labels = {"background": 0, "one": 1, "absent": 2}
    (run,) = runs(nnunet_folders, {"a": CUBE, "b": CUBE}, labels=labels)
    break_prediction(run, how)
    cases = table([run]).set_index(["case", "label"])
    row = cases.loc[("a", "one")]
    assert row["failure"] == how
    assert (row["dice"], row["nsd"], row["voxels_predicted"]) == (0, 0, 0)
    assert row["hd95"] == pytest.approx(DIAGONAL)
    assert row["voxels_reference"] == CUBE.sum()
    absent = cases.loc[("a", "absent")]
    if how == "empty prediction":  # it is right about this one, as nnU-Net's summary says
        assert math.isnan(absent["dice"])
        assert absent["failure"] == ""
    else:
        assert (absent["dice"], absent["failure"]) == (0, how)
    assert cases.loc[("b", "one"), "dice"] == 1


def test_the_same_shape_with_another_spacing_is_another_grid(nnunet_folders: Path) -> None:
    (run,) = runs(nnunet_folders, {"a": CUBE})
    write_labels(run.predictions / "a.nii.gz", CUBE, (3.0, 1.0, 1.0))
    assert list(table([run])["failure"]) == ["other grid"]


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_an_unreadable_reference_stops_with_its_name(nnunet_folders: Path, damage: str) -> None:
    (run,) = runs(nnunet_folders, {"a": CUBE})
    path = run.references / "a.nii.gz"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=str(path)):
        table([run])


def test_processes_give_the_same_table(nnunet_folders: Path) -> None:
    (run,) = runs(nnunet_folders, {"a": MOVED, "b": CUBE, "c": np.zeros_like(CUBE)})
    pd.testing.assert_frame_equal(table([run], workers=2), table([run]))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cases in the order in which they are really measured."""
    seen: list[str] = []

    def score(job: one_case.Job) -> one_case.CaseScores:
        seen.append(job.case)
        return one_case.score_case(job)

    monkeypatch.setattr(measuring, "score_case", score)
    return seen


def test_a_second_comparison_measures_nothing(nnunet_folders: Path, tmp_path: Path, counted: list[str]) -> None:
    found = runs(nnunet_folders, {"a": MOVED, "b": CUBE}, references=dict.fromkeys("abc", CUBE))
    first = table(found, tmp_path / "cache", lesions=("one",))
    assert counted == ["a", "b", "c"]
    second = table(found, tmp_path / "cache", lesions=("one",))
    assert counted == ["a", "b", "c"]
    pd.testing.assert_frame_equal(first, second)


def test_a_killed_comparison_goes_on(
    nnunet_folders: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runs(nnunet_folders, {"a": MOVED, "b": CUBE})
    count = measuring.score_case

    def killed(job: one_case.Job) -> one_case.CaseScores:
        if job.case == "b":
            raise KeyboardInterrupt
        return count(job)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "score_case", killed)
        with pytest.raises(KeyboardInterrupt):
            table(found, tmp_path / "cache")
    with (tmp_path / "cache" / "cases.jsonl").open("ab") as file:
        file.write(b'{"stamp": "cut o')
    table(found, tmp_path / "cache")
    assert counted == ["a", "b"]


def change_prediction(run: Run) -> dict[str, Any]:
    write_labels(run.predictions / "a.nii.gz", CUBE, SPACING)
    return {}


def change_reference(run: Run) -> dict[str, Any]:
    write_labels(run.references / "a.nii.gz", MOVED, SPACING)
    return {}


def change_tolerance(run: Run) -> dict[str, Any]:
    return {"tolerance_mm": 2.0}


def change_lesions(run: Run) -> dict[str, Any]:
    return {"lesions": ("one",)}


@pytest.mark.parametrize("change", [change_prediction, change_reference, change_tolerance, change_lesions])
def test_what_changed_is_measured_again(nnunet_folders: Path, tmp_path: Path, counted: list[str], change: Any) -> None:
    (run,) = runs(nnunet_folders, {"a": MOVED})
    table([run], tmp_path / "cache")
    options = change(run)
    again = table([run], tmp_path / "cache", **options)
    assert counted == ["a", "a"]
    pd.testing.assert_frame_equal(again, table([run], **options))


def test_other_metrics_are_measured_again(
    nnunet_folders: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runs(nnunet_folders, {"a": MOVED})
    table(found, tmp_path / "cache")
    monkeypatch.setattr(one_case, "METRICS_VERSION", one_case.METRICS_VERSION + 1)
    table(found, tmp_path / "cache")
    assert counted == ["a", "a"]


def test_copied_results_are_known_by_their_content(nnunet_folders: Path, tmp_path: Path, counted: list[str]) -> None:
    (run,) = runs(nnunet_folders, {"a": MOVED})
    table([run], tmp_path / "cache")
    os.utime(run.predictions / "a.nii.gz", (1, 1))
    table([run], tmp_path / "cache")
    assert counted == ["a"]


def test_what_could_not_be_read_is_tried_again(nnunet_folders: Path, tmp_path: Path, counted: list[str]) -> None:
    (run,) = runs(nnunet_folders, {"a": CUBE})
    break_prediction(run, "unreadable")
    for _ in range(2):
        table([run], tmp_path / "cache")
    assert counted == ["a", "a"]


def test_a_cache_of_others_is_left_alone(nnunet_folders: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('[1]\n{"stamp": 1}\nnonsense\n{"scores": {"a": {"b": 1}}, "failure": ""}\n')
    assert len(table(runs(nnunet_folders, {"a": CUBE}), tmp_path)) == 1


def test_flat_pictures_are_measured_as_such(nnunet_folders: Path) -> None:
    """nnU-Net gives a PNG a third axis of 999 mm; the contours must not know of it."""
    from skimage import io

    folders = [nnunet_folders / name for name in ("truth", "guess")]
    square = np.zeros((12, 12), np.uint8)
    square[3:9, 3:9] = 1
    write_test_predictions(folders[1], {}, SPACING)
    folders[0].mkdir()
    content = {"labels": LABELS, "file_ending": ".png"}
    (folders[1] / "dataset.json").write_text(json.dumps(content))
    (folders[1] / "plans.json").write_text(json.dumps({"image_reader_writer": "NaturalImage2DIO"}))
    io.imsave(folders[0] / "a.png", square, check_contrast=False)
    io.imsave(folders[1] / "a.png", np.roll(square, 2, 1), check_contrast=False)
    (run,) = find_runs(Request(held_out=(HeldOut("roads", folders[0], {"mine": [folders[1]]}),))).runs
    (row,) = table([run]).to_dict("records")
    assert row["hd95"] == 2.0
    assert row["dice"] == pytest.approx(2 / 3)


def test_a_tiff_takes_its_spacing_from_wherever_it_stands(tmp_path: Path) -> None:
    """nnU-Net writes it beside predictions, but does not copy it to gt_segmentations."""
    import tifffile

    from nnssl_mae.comparison.one_case import Job, score_case

    for name, values in (("truth", CUBE), ("guess", np.roll(CUBE, 1, axis=0))):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", values)
    (tmp_path / "guess" / "a.json").write_text('{"spacing": [5, 1, 1]}')
    files = tmp_path / "truth" / "a.tif", tmp_path / "guess" / "a.tif"
    result = score_case(Job("a", *files, "Tiff3DIO", {"one": (1,)}, None, 1.0, ()))
    assert result.failure == ""
    assert result.scores["one"].hd95 == 5.0


def write_tiff(folder: Path, case: str, values: np.ndarray, spacing: list[float] | None = None) -> None:
    import tifffile

    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / f"{case}.tif", values)
    if spacing:
        (folder / f"{case}.json").write_text(json.dumps({"spacing": spacing}))


@pytest.fixture
def tiffs(tmp_path: Path) -> Path:
    """Two cases of a test set, predicted by arms A and B; no file tells a spacing."""
    for arm in "AB":
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".tif"}))
        (tmp_path / arm / "plans.json").write_text(json.dumps({"image_reader_writer": "Tiff3DIO"}))
    for case in ("a", "b"):
        for name, values in (("truth", CUBE), ("A", np.roll(CUBE, 1, axis=0)), ("B", np.zeros_like(CUBE))):
            write_tiff(tmp_path / name, case, values)
    return tmp_path


def tiff_runs(root: Path, arms: str = "AB") -> list[Run]:
    folders = {arm: [root / arm] for arm in arms}
    return list(find_runs(Request(held_out=(HeldOut("tiffs", root / "truth", folders),))).runs)


def test_all_arms_are_measured_in_the_same_mm(tiffs: Path) -> None:
    """Only A's files tell the spacing: B failed on one case, and its other file lost what nnU-Net wrote beside it."""
    for case in ("a", "b"):
        (tiffs / "A" / f"{case}.json").write_text('{"spacing": [5, 2, 1]}')
    (tiffs / "B" / "b.tif").unlink()
    cases = table(tiff_runs(tiffs)).set_index(["arm", "case"])
    assert list(cases.loc["A", "hd95"]) == [5.0, 5.0]
    diagonal = math.sqrt((6 * 5) ** 2 + (8 * 2) ** 2 + 10**2)
    assert list(cases.loc["B", "hd95"]) == pytest.approx([diagonal, diagonal])
    assert list(cases.loc["B", "failure"]) == ["empty prediction", "no prediction"]


@pytest.mark.parametrize("told", ["nothing", "of one case", "contradictions"])
def test_without_a_spacing_for_all_there_are_no_mm_in_any_arm(tiffs: Path, told: str) -> None:
    if told != "nothing":
        (tiffs / "A" / "a.json").write_text('{"spacing": [5, 1, 1]}')
    if told == "contradictions":
        for file in ("A/b.json", "B/b.json", "B/a.json"):
            (tiffs / file).write_text(json.dumps({"spacing": [4, 1, 1] if "b." in file else [3, 1, 1]}))
    console = Console(record=True, width=200, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    cases = measure(tiff_runs(tiffs), MetricOptions(), None, 1, console)
    assert cases["hd95"].isna().all()
    assert cases["nsd"].isna().all()
    assert cases["dice"].notna().all()
    assert "no surface Dice and no HD95" in console.export_text()


def test_the_spacing_beside_the_reference_counts_first(tiffs: Path) -> None:
    for case in ("a", "b"):
        (tiffs / "truth" / f"{case}.json").write_text('{"spacing": [2, 1, 1]}')
        (tiffs / "A" / f"{case}.json").write_text('{"spacing": [5, 1, 1]}')
    cases = table(tiff_runs(tiffs)).set_index(["arm", "case"])
    assert list(cases.loc["A", "failure"]) == ["other grid"] * 2
    assert cases.loc[("B", "a"), "hd95"] == pytest.approx(math.sqrt(12**2 + 8**2 + 10**2))


def test_another_spacing_beside_a_tiff_is_measured_again(tiffs: Path, tmp_path: Path) -> None:
    for spacing in (5, 7):
        for case in ("a", "b"):
            (tiffs / "A" / f"{case}.json").write_text(json.dumps({"spacing": [spacing, 1, 1]}))
        assert list(table(tiff_runs(tiffs, "A"), tmp_path / "cache")["hd95"]) == [spacing] * 2


def test_a_replaced_file_of_the_same_size_and_time_is_measured_again(nnunet_folders: Path, tmp_path: Path) -> None:
    """As ``cp -p`` and ``rsync -t`` leave it."""
    (run,) = runs(nnunet_folders, {"a": MOVED})
    file = run.predictions / "a.nii.gz"
    file.write_bytes(file.read_bytes().ljust(400, b"\0"))
    before = file.stat()
    assert table([run], tmp_path / "cache")["dice"][0] < 1
    write_labels(file, CUBE, SPACING)
    file.write_bytes(file.read_bytes().ljust(400, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert table([run], tmp_path / "cache")["dice"][0] == 1


def test_subjects_are_those_of_few_label_splits_where_no_map_tells(nnunet_folders: Path) -> None:
    found = runs(nnunet_folders, {"sub-1_ses-a": CUBE, "sub-1_ses-b": CUBE, "other": CUBE})
    subjects = table(found).set_index("case")["subject"]
    assert dict(subjects) == {"sub-1_ses-a": "sub-1", "sub-1_ses-b": "sub-1", "other": "other"}


def test_a_flat_axis_at_another_place_is_another_grid(nnunet_folders: Path) -> None:
    square = np.zeros((1, 8, 8), np.uint8)
    square[0, 2:5, 2:7] = 1
    (run,) = runs(nnunet_folders, {"a": square}, {"a": square})
    assert list(table([run])["failure"]) == [""]
    write_labels(run.predictions / "a.nii.gz", np.moveaxis(square, 0, 1), (1.0, 3.0, 0.5))
    assert list(table([run])["failure"]) == ["other grid"]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.inf, math.nan])
def test_a_tolerance_that_means_nothing_is_refused(nnunet_folders: Path, tolerance: float) -> None:
    with pytest.raises(UserError, match="A tolerance of"):
        table(runs(nnunet_folders, {"a": CUBE}), tolerance_mm=tolerance)


def test_fractional_values_belong_to_no_label(nnunet_folders: Path) -> None:
    (run,) = runs(nnunet_folders, {"a": CUBE})
    image = sitk.GetImageFromArray(CUBE.astype(np.float32) * 1.25)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(run.predictions / "a.nii.gz"))
    assert list(table([run])["failure"]) == ["empty prediction"]
