"""Labels read off features of whole scans, with extractors that stand in for networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnssl_mae.errors import UserError
from nnssl_mae.probe import linear_probe
from nnssl_mae.probe.encoders import FeatureMaps
from nnssl_mae.probe.labels import LabelNames
from nnssl_mae.probe.linear import Classifier, Samples, fit
from nnssl_mae.probe.linear_probe import Exam, Marks, examine, features_at, scores_of, set_exam
from nnssl_mae.probe.volumes import ProbeScan
from nnssl_mae.scans.preprocess import Preprocessed

PATCH = (16, 16, 16)


def scan(seed: int, group: str | None = None, shape: tuple[int, int, int] = (20, 16, 24)) -> ProbeScan:
    """A planted square of label 2, whose voxels have the value 2, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    low = rng.integers(1, 6, 3)
    labels[low[0] : low[0] + 9, low[1] : low[1] + 9, low[2] : low[2] + 9] = 2
    volume = (labels + rng.normal(0, 0.1, shape)).astype(np.float32)
    prepared = Preprocessed(volume[None], None, {})
    return ProbeScan(f"scan{seed}", group or f"subject{seed}", prepared, np.ones(shape, bool), labels)


def marks_of(exam: Exam, extract: object) -> Marks:
    *_, last = examine(exam, extract)  # type: ignore[arg-type]
    assert last is not None
    return last


def exam_of(scans: list[ProbeScan]) -> Exam:
    return set_exam(scans, PATCH, LabelNames({2: "square"}), seed=0)


def test_a_planted_label_is_read_off_and_noise_is_not() -> None:
    exam = exam_of([scan(seed) for seed in range(3)])
    found = marks_of(exam, lambda patch: [patch[None]])
    assert found.dice["square"] > 0.99
    assert found.balanced_accuracy > 0.99
    generator = torch.Generator().manual_seed(0)
    noise = marks_of(exam, lambda patch: [torch.randn(4, *patch.shape, generator=generator)])
    assert noise.dice["square"] < 0.3
    assert noise.balanced_accuracy == pytest.approx(0.5, abs=0.05)


def test_features_of_a_coarse_stage_lie_where_they_were_computed() -> None:
    """Means of cells of 2 voxels tell the square nearly as well: a shift by a cell would cost much more."""
    exam = exam_of([scan(seed) for seed in range(3)])
    assert marks_of(exam, lambda patch: [F.avg_pool3d(patch[None], 2)]).dice["square"] > 0.85


def random_maps() -> FeatureMaps:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(c, *size, generator=generator) for c, size in ((3, (8, 12, 8)), (5, (4, 6, 4)), (2, (2, 3, 2)))]


def test_scores_of_a_patch_are_those_of_its_voxels() -> None:
    """Classifying before interpolating, as is done, equals interpolating first."""
    patch, maps = (8, 12, 8), random_maps()
    points = np.argwhere(np.ones(patch, bool))
    features = features_at(maps, patch, points)
    upsampled = torch.cat([F.interpolate(m[None], patch, mode="trilinear", align_corners=False)[0] for m in maps])
    np.testing.assert_allclose(features, upsampled.flatten(1).T.numpy(), atol=1e-5)
    classifier = fit([Samples(features, np.random.default_rng(0).integers(0, 4, len(points)))], 4)
    expected = features @ classifier.weights + classifier.bias
    np.testing.assert_allclose(scores_of(maps, patch, classifier).flatten(1).T.numpy(), expected, atol=1e-4)


def test_a_scan_is_never_tested_by_what_it_trained() -> None:
    """Features that are a fingerprint of the scan, and wrong for all others, would only help by cheating."""
    scans = [scan(seed) for seed in range(4)]
    sign = {float(each.volume[0, 0, 0]): (-1) ** n for n, each in enumerate(scans)}

    def flipped(patch: torch.Tensor) -> FeatureMaps:
        found = next((s for value, s in sign.items() if value in patch[0, 0]), 1)
        return [patch[None] * found]

    same_group = [ProbeScan(s.name, "ab"[n % 2], s.scan, s.body, s.labels) for n, s in enumerate(scans)]
    exam = exam_of(same_group)  # trained on one sign, tested on the other
    assert len(exam.folds) == 2
    assert marks_of(exam, flipped).dice["square"] < 0.5


def test_the_penalty_is_chosen_by_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def fit_and_tell(samples: list[Samples], classes: int, groups: list[str]) -> Classifier:
        told.append(groups)
        return fit(samples, classes, groups)

    monkeypatch.setattr(linear_probe, "fit", fit_and_tell)
    scans = [scan(n, group) for n, group in enumerate("aabbcc")]
    marks_of(exam_of(scans), lambda patch: [patch[None]])
    assert sorted(map("".join, told)) == ["aabb", "aacc", "bbcc"]


def test_voxels_of_the_ignored_label_have_no_part() -> None:
    scans = [scan(seed) for seed in range(3)]
    for each in scans:
        assert each.labels is not None
        each.labels[:4] = 9
        each.volume[:4] = 2  # would be taken for the square
    exam = set_exam(scans, PATCH, LabelNames({}, ignore=9), seed=0)
    assert exam.names == ("0", "2")
    assert marks_of(exam, lambda patch: [patch[None]]).dice["2"] > 0.99


def test_voxels_are_drawn_evenly_from_the_classes_and_by_the_seed_only() -> None:
    exam = exam_of([scan(0), scan(1)])
    classes = exam.tasks[0].classes[tuple(exam.tasks[0].points.T)]
    assert (classes == 1).sum() == 9**3
    assert (classes == 0).sum() == 1500
    again = exam_of([scan(0), scan(1)])
    np.testing.assert_array_equal(exam.tasks[1].points, again.tasks[1].points)


def test_too_little_to_test_on_is_refused() -> None:
    with pytest.raises(UserError, match="at least two subjects"):
        exam_of([scan(0)])
    with pytest.raises(UserError, match="at least two subjects"):
        exam_of([scan(0, "a"), scan(1, "a")])
    empty = [scan(0), scan(1)]
    for each in empty:
        assert each.labels is not None
        each.labels[:] = 0
    with pytest.raises(UserError, match="nothing but background"):
        exam_of(empty)
