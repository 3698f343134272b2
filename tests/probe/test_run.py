"""``nnssl-mae probe`` from checkpoint to verdict."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
import torch
from rich.console import Console

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.table import ACCEPTED, REJECTED, Catalogue, ScanRow, write_catalogue
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import Hiding, reconstruct
from nnssl_mae.probe import run, volumes
from nnssl_mae.probe.baselines import BLOCK, MEAN, TRILINEAR
from nnssl_mae.probe.chosen import ChosenScans, choose_scans
from nnssl_mae.probe.collapse import Use
from nnssl_mae.probe.encoders import Extractor, FeatureMaps, features_of, pretrained_encoder, random_encoder
from nnssl_mae.probe.forecast import forecast, patches_to_see
from nnssl_mae.probe.linear_probe import Exam, Marks
from nnssl_mae.probe.reconstruction import NETWORK, AtRatio, Reconstructions, reconstructing, reconstructions
from nnssl_mae.probe.result import Collapse, LinearProbe, Probed
from nnssl_mae.probe.run import Wishes, as_document, probe
from nnssl_mae.probe.verdict import is_collapsed, trend, verdict
from nnssl_mae.probe.volumes import prepared_scan
from tests.checkpoints.files import tiny_recipe, write_own
from tests.probe.test_labels import write_pair
from tests.tiny_scans import tiny_scan, write_labelled


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two scans with labels, in ``images`` and ``labels``."""
    for name in ("a", "b"):
        write_pair(tmp_path, name=name)
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_own(tmp_path / "x.pth", tiny_recipe())
    return tmp_path / "x.pth"


def wishes_of(folder: Path, **others: object) -> Wishes:
    usual: dict = {"scans": (folder / "images",), "labels": folder / "labels", "ratios": (0.5,), "random_networks": 3}
    return Wishes(**{**usual, **others})


def test_a_pre_trained_checkpoint_end_to_end(
    tmp_path: Path, pretrained: Path, scans_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for index in range(8):
        nibabel.save(tiny_scan(index)[1], labels / f"sub-{index:02d}_T1w.nii.gz")
    wishes = Wishes(scans=(scans_folder,), labels=labels, most_scans=3, ratios=(0.3, 0.9))
    (found,) = probe([str(pretrained)], wishes, Console(width=120), tmp_path / "out", "cpu")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"probe.json", "probe.png"}
    assert found.reconstructions is not None
    assert [at.ratio for at in found.reconstructions.at] == [0.3, 0.75, 0.9]
    assert found.linear is not None
    assert found.linear.covered == 1
    assert set(found.linear.trained.dice) == {"1", "2"}
    assert 0 < found.linear.trained.mean_dice < 1
    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert written["checkpoints"][0]["verdict"]["worth"] in ("yes", "unclear", "no")
    assert str(tmp_path) not in (tmp_path / "out" / "probe.json").read_text()
    printed = capsys.readouterr().out
    assert "linear probe Dice" in printed
    assert "worth fine-tuning" in printed.lower()
    assert "Preparing scans: 3 done" in printed


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(pairs: Path, checkpoint: Path) -> None:
    def numbers(seed: int) -> str:
        wishes = wishes_of(pairs, seed=seed)
        return json.dumps(as_document(probe([str(checkpoint)], wishes, quiet(), device="cpu"), wishes)["checkpoints"])

    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)


def test_untrained_networks_are_seeded_and_differ(checkpoint: Path) -> None:
    architecture = read_checkpoint(checkpoint).architecture

    def weights(seed: int) -> torch.Tensor:
        return torch.cat(
            [parameter.detach().flatten() for parameter in random_encoder(architecture, 1, seed).parameters()]
        )

    torch.manual_seed(5)
    before = torch.get_rng_state()
    torch.testing.assert_close(weights(0), weights(0), rtol=0, atol=0)
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(before, torch.get_rng_state())  # nobody else's draws are changed


def test_every_filter_of_an_untrained_network_is_at_work(checkpoint: Path) -> None:
    encoder = random_encoder(read_checkpoint(checkpoint).architecture, 1, 0)
    patch = torch.randn(1, 1, 16, 16, 16)
    before = encoder(patch)[-1]
    with torch.no_grad():
        encoder.stages[-1].blocks[0].conv2.conv.weight.mul_(-1)
    assert not torch.allclose(before, encoder(patch)[-1])


def test_the_encoder_is_the_one_that_was_pre_trained(tmp_path: Path) -> None:
    network = write_own(tmp_path / "x.pth", tiny_recipe())
    patch = torch.randn(1, 1, 16, 16, 16)
    found = pretrained_encoder(read_checkpoint(tmp_path / "x.pth"), "x")(patch)
    for ours, theirs in zip(found, network.encode(patch, torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("target", ["none", "block"])
def test_the_network_is_judged_as_in_the_preview(tmp_path: Path, target: str) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe(loss={"target_normalisation": target}))
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    image, _ = write_pair(tmp_path)
    scan = prepared_scan(Scan(image, "x", "x"), checkpoint, None, "x")
    network = reconstructing(checkpoint)
    assert not isinstance(network, str)
    *_, found = reconstructions(network, checkpoint, [scan], [0.4], 3, torch.device("cpu"))
    assert found is not None
    draw = int(np.random.SeedSequence([3, 0]).generate_state(1)[0])
    metrics = reconstruct(network, checkpoint, scan.scan, Hiding(0.4, 4, draw), torch.device("cpu")).metrics
    assert found.at[0].r2[NETWORK][0] == pytest.approx(metrics["r2"], abs=1e-4)
    assert found.at[0].psnr[NETWORK][0] == pytest.approx(metrics["psnr"], abs=1e-3)
    assert found.blocks_are_given == (target == "block")
    assert found.at[0].r2["mean of visible"][0] == pytest.approx(0, abs=1e-6)


def test_without_a_decoder_the_rest_is_done_and_the_reason_said(
    pairs: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "_ASSUMED_EDGE", 16)  # in place of 96 voxels of 1 mm, which take minutes
    monkeypatch.setitem(volumes._ASSUMED_DATA, "spacing", [5.0, 5.0, 5.0])
    weights = {name: t for name, t in read_checkpoint(checkpoint).weights.items() if name.startswith("encoder.")}
    torch.save(weights, pairs / "bare.pth")
    (found,) = probe([str(pairs / "bare.pth")], wishes_of(pairs), quiet(), device="cpu")
    assert found.reconstructions is None
    assert found.linear is not None
    assert any("No reconstruction: it holds bare weights" in note for note in found.notes)
    assert any("1 mm, z-score and RAS are assumed" in note for note in found.notes)


def test_without_labels_no_linear_probe_is_made(pairs: Path, checkpoint: Path) -> None:
    (found,) = probe([str(checkpoint)], wishes_of(pairs, labels=None), quiet(), device="cpu")
    assert found.linear is None
    assert verdict(found).worth in ("probably", "unclear", "no")


def test_every_checkpoint_of_a_run_gets_a_line(pairs: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    run = pairs / "run"
    run.mkdir()
    content = torch.load(checkpoint)
    for name, epochs in (("best", 30), ("latest", 2), ("final", 10)):
        content["nnssl_mae"]["epochs_done"] = epochs
        torch.save(content, run / f"checkpoint_{name}.pth")
    found = probe([str(run)], wishes_of(pairs, every=True, labels=None), Console(width=150), device="cpu")
    assert [each.epochs for each in found] == [2, 10, 30]
    assert "more training changes little" in capsys.readouterr().out


def test_a_labelled_dataset_is_known_by_its_number(nnunet_folders: Path, checkpoint: Path) -> None:
    write_labelled(nnunet_folders / "raw", 7, "Two", count=2, channels=2)
    wishes = Wishes(dataset=7, ratios=(0.5,))
    (found,) = probe([str(checkpoint)], wishes, quiet(), device="cpu")
    assert found.linear is not None
    assert set(found.linear.trained.dice) == {"dark", "bright"}
    assert found.scans == ("case100_0000", "case101_0000")
    assert any("only the first" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scans": ()}, "needs scans"),
        ({"scans": ("nowhere",)}, "nowhere"),
        ({"labels": "nowhere"}, "is no folder"),
        ({"dataset": 7}, "must be left out"),
        ({"random_networks": 2}, "at least 3"),
        ({"most_scans": 1}, "at least two subjects"),
        ({"seed": -1}, "--seed -1"),
        ({"ratios": (1.0,)}, "A ratio of 1"),
    ],
)
def test_impossible_wishes_are_refused(pairs: Path, checkpoint: Path, change: dict, sentence: str) -> None:
    change = {key: pairs / value if value == "nowhere" else value for key, value in change.items()}
    if change.get("scans") == ("nowhere",):
        change["scans"] = (pairs / "nowhere",)
    with pytest.raises(UserError, match=sentence):
        probe([str(checkpoint)], wishes_of(pairs, **change), quiet(), pairs / "out", "cpu")
    assert not (pairs / "out").exists()


def spoil(path: Path) -> None:
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


def test_scans_that_cannot_be_used_are_left_out_with_a_word(pairs: Path, checkpoint: Path) -> None:
    images = pairs / "images"
    spoil(images / "a_0000.nii.gz")
    (images / "empty_0000.nii.gz").touch()
    wishes = wishes_of(pairs, labels=None)
    (found,) = probe([str(checkpoint)], wishes, quiet(), device="cpu")
    assert found.scans == ("b_0000",)
    (note,) = (note for note in found.notes if "left out" in note)
    assert note.startswith("2 scans are left out: ") and str(pairs) not in note
    assert "a_0000.nii.gz contains NaN" in note and "empty_0000.nii.gz holds 0 bytes" in note
    spoil(images / "b_0000.nii.gz")
    with pytest.raises(UserError, match=r"No scan can be probed with: a_0000.nii.gz contains NaN .* b_0000"):
        probe([str(checkpoint)], wishes, quiet(), pairs / "out", "cpu")
    assert not (pairs / "out").exists()


def chosen_of(folder: Path, bad: set[str], most: int) -> ChosenScans:
    def problem_of(scan: Scan) -> str | None:
        return "is bad" if scan.case in bad else None

    return choose_scans([folder], None, None, most, None, problem_of)


@pytest.mark.parametrize(
    ("bad", "most", "expected", "notes"),
    [
        ("", 3, "adg", ["3 of 7 scans are looked at"]),
        ("d", 3, "acg", ["1 scan is left out: d.nii.gz is bad", "3 of 7 scans"]),
        ("abcdef", 3, "g", ["6 scans are left out: a.nii.gz is bad; b.nii.gz is bad; .*; and 3 more"]),
        ("g", 7, "abcdef", ["1 scan is left out"]),
    ],
)
def test_the_nearest_scan_takes_the_place_of_one_that_cannot_be_used(
    tmp_path: Path, bad: str, most: int, expected: str, notes: list[str]
) -> None:
    for name in "abcdefg":
        (tmp_path / f"{name}.nii.gz").touch()
    chosen = chosen_of(tmp_path, set(bad), most)
    assert "".join(scan.case for scan in chosen.scans) == expected
    assert len(chosen.notes) == len(notes)
    assert all(re.match(pattern, note) for pattern, note in zip(notes, chosen.notes, strict=True))


def test_of_a_catalogue_the_accepted_scans_count(tmp_path: Path) -> None:
    rows = [
        ScanRow(f"/data/{case}.nii.gz", "", "", case, "d", case, "file", "", "", "nifti", verdict=verdict)
        for case, verdict in (("a", ACCEPTED), ("b", REJECTED), ("c", ACCEPTED))
    ]
    for name, table in (("catalogue", rows), ("none", rows[1:2])):
        (tmp_path / name).mkdir()
        write_catalogue(tmp_path / name, Catalogue(pandas.DataFrame(map(asdict, table))))
    chosen = chosen_of(tmp_path / "catalogue", set(), 8)
    assert [(scan.case, scan.path) for scan in chosen.scans] == [(c, Path(f"/data/{c}.nii.gz")) for c in "ac"]
    with pytest.raises(UserError, match="no accepted scan"):
        chosen_of(tmp_path / "none", set(), 8)
    with pytest.raises(UserError, match="one catalogue"):
        choose_scans([tmp_path / "catalogue", tmp_path], None, None, 8, None, lambda scan: None)
    with pytest.raises(UserError, match="--subject-regex belongs to"):
        choose_scans([tmp_path / "catalogue"], None, None, 8, "(.)", lambda scan: None)


def test_checkpoints_that_cannot_be_probed_are_refused(pairs: Path, checkpoint: Path) -> None:
    content = torch.load(checkpoint)
    content["network_weights"]["encoder.stem.convs.0.conv.weight"][0] = float("nan")
    torch.save(content, pairs / "nan.pth")
    with pytest.raises(UserError, match="not finite: its training diverged"):
        probe([str(pairs / "nan.pth")], wishes_of(pairs), quiet(), pairs / "out", "cpu")
    (pairs / "text.pth").write_text("no checkpoint")
    with pytest.raises(UserError, match="not a checkpoint"):
        probe([str(checkpoint), str(pairs / "text.pth")], wishes_of(pairs), quiet(), pairs / "out", "cpu")
    with pytest.raises(UserError, match="holds no checkpoint_"):
        probe([str(pairs / "images")], wishes_of(pairs, every=True), quiet(), pairs / "out", "cpu")
    assert not (pairs / "out").exists()


def test_an_output_that_is_a_file_is_refused_first(pairs: Path, checkpoint: Path) -> None:
    shutil.copy(checkpoint, pairs / "out")
    with pytest.raises(UserError, match="is a file; choose a folder"):
        probe([str(checkpoint)], wishes_of(pairs), quiet(), pairs / "out", "cpu")


def test_an_output_that_cannot_be_written_to_is_refused_first(pairs: Path, checkpoint: Path) -> None:
    for out in (checkpoint / "out", Path("/proc/out")):
        with pytest.raises(UserError, match=r"Nothing can be written to .*out \("):
            probe([str(checkpoint), str(pairs / "absent.pth")], wishes_of(pairs), quiet(), out, "cpu")


def test_a_long_wait_is_announced(
    pairs: Path, checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "seconds_of_a_patch", lambda extract, patch: 30.0)
    probe([str(checkpoint)], wishes_of(pairs), Console(width=200), device="cpu")
    assert re.search(
        r"Probing x.pth will take about \d.*: \d+ patches of 30.0 s.*--most-scans", capsys.readouterr().out
    )
    assert forecast("x.pth", 100, 0.1) is None  # nobody waits


def test_the_forecast_counts_every_patch_that_an_encoder_sees(
    pairs: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    said: list[int] = []

    def without_reconstructions(networks: int, scans: int, exam: Exam | None, ratios: int) -> int:
        said.append(patches_to_see(networks, scans, exam, 0))
        return 0

    monkeypatch.setattr(run, "features_of", lambda encoder, device: counting(encoder, seen))
    monkeypatch.setattr(run, "patches_to_see", without_reconstructions)
    probe([str(checkpoint)], wishes_of(pairs), quiet(), device="cpu")
    measured = 2  # to find out how long one takes
    assert len(seen) - measured <= said[0] <= 1.2 * len(seen)


def counting(encoder: torch.nn.Module, seen: list[int]) -> Extractor:
    extract = features_of(encoder, torch.device("cpu"))

    def counted(patch: torch.Tensor) -> FeatureMaps:
        seen.append(1)
        return extract(patch)

    return counted


def use(rank: float, dead: float = 0.0, cosine: float = 0.5) -> Use:
    return Use(channels=100, positions=1000, effective_rank=rank, dead=dead, cosine=cosine)


HEALTHY = Collapse(trained=(use(40),), random=((use(30),), (use(32),), (use(31),)))


@pytest.mark.parametrize(
    ("trained", "collapsed"),
    [(use(40), False), (use(16), False), (use(14), True), (use(40, dead=0.6), True), (use(40, cosine=0.995), True)],
)
def test_collapse_is_named(trained: Use, collapsed: bool) -> None:
    assert is_collapsed(replace(HEALTHY, trained=(trained,))) == collapsed


UNTRAINED = (0.50, 0.51, 0.52, 0.53, 0.54)


def reconstructed(r2: float) -> Reconstructions:
    """Beside fillings that reach 0.3."""
    values = {NETWORK: r2, MEAN: 0.0, BLOCK: 0.1, TRILINEAR: 0.3}
    at = AtRatio(0.75, {name: np.array([value]) for name, value in values.items()}, dict.fromkeys(values, np.zeros(1)))
    return Reconstructions((at,), 0.75, 4, False)


def probed(
    dice: float,
    epochs: int = 1,
    collapse: Collapse = HEALTHY,
    raw: float = 0.4,
    r2: float | None = None,
    untrained: Sequence[float] = UNTRAINED,
) -> Probed:
    def marks(value: float) -> Marks:
        return Marks({"a": value}, {"s": value, "t": value}, value)

    linear = LinearProbe(marks(dice), tuple(map(marks, untrained)), marks(raw), 2, 2, 1.0)
    filled = None if r2 is None else reconstructed(r2)
    return Probed(f"c{epochs}.pth", "mae", epochs, ("s", "t"), collapse, filled, linear)


@pytest.mark.parametrize(
    ("dice", "others", "worth", "word"),
    [
        (0.61, {}, "yes", "better than untrained ones and than raw intensities"),
        (0.61, {"r2": 0.5}, "yes", "better than every baseline"),
        (0.61, {"raw": 0.605}, "unclear", "No yes, because raw intensities do as well"),
        (0.61, {"raw": 0.7, "r2": 0.1}, "unclear", "raw intensities .*; and hidden blocks are reconstructed no better"),
        (0.61, {"r2": 0.305}, "unclear", "No yes, because hidden blocks are reconstructed no better"),
        (0.56, {"r2": 0.5}, "unclear", "lead of 0.040 Dice is within the 0.048 that another untrained network"),
        (0.56, {"r2": 0.1}, "no", "not clearly better than untrained"),
        (0.51, {"r2": 0.5}, "no", "not clearly better than untrained"),
        (0.40, {"r2": 0.5}, "no", "worse than untrained"),
    ],
)
def test_a_yes_needs_all_three(dice: float, others: dict, worth: str, word: str) -> None:
    """The untrained networks lie at 0.52 with a standard deviation of 0.016."""
    answer = verdict(probed(dice, **others))
    assert answer.worth == worth
    assert any(re.search(word, reason) for reason in answer.reasons)


def filled_at(gains: Sequence[float]) -> Probed:
    """Without labels: how much more R2 than the best filling it reaches at each ratio; the last is that it trained."""
    at = [replace(reconstructed(0.3 + gain).at[0], ratio=0.1 * place) for place, gain in enumerate(gains)]
    filled = Reconstructions(tuple(at), at[-1].ratio, 4, False)
    return Probed("c.pth", "mae", 1, ("s",), HEALTHY, filled)


@pytest.mark.parametrize(
    ("gains", "worth", "word"),
    [
        ((0.1, 0.1, 0.1, 0.1), "probably", "better than every baseline at all ratios"),
        ((-0.2, 0.1, 0.1, 0.1), "probably", "at 3 of 4 ratios"),
        ((-0.2, -0.1, 0.1, 0.1), "unclear", "At 2 of 4 ratios trilinear inpainting, which learnt nothing"),
        ((-0.2, -0.1, 0.0, 0.1), "unclear", "At 3 of 4 ratios .* says little: --labels would tell more"),
        ((0.1, 0.1, 0.1, 0.0), "no", "no better than trilinear inpainting"),
    ],
)
def test_without_labels_it_must_beat_interpolation_at_most_ratios(
    gains: Sequence[float], worth: str, word: str
) -> None:
    answer = verdict(filled_at(gains))
    assert answer.worth == worth
    assert any(re.search(word, reason) for reason in answer.reasons)
    assert ("Probably" in answer.headline) == (worth == "probably")


@pytest.mark.parametrize("networks", [3, 5])
def test_untrained_networks_rarely_get_a_yes(networks: int) -> None:
    """Of checkpoints that are one more draw of what they are compared with: every fortieth at most, not every tenth."""
    draws = np.random.default_rng(0).normal(0.46, 0.03, (4000, networks + 1))
    worth = [verdict(probed(row[0], untrained=row[1:], raw=0.1)).worth for row in draws.tolist()]
    assert worth.count("yes") / len(worth) == pytest.approx(0.025, abs=0.008)


def test_an_untrained_checkpoint_gets_no_yes(tmp_path: Path, checkpoint: Path) -> None:
    """Real scans, real features: it has the luckiest seed of several, and raw intensities are better all the same."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        for folder, image in zip(("images", "labels"), tiny_scan(index), strict=True):
            nibabel.save(image, tmp_path / folder / f"sub-{index:02d}_T1w.nii.gz")
    wishes = wishes_of(tmp_path, random_networks=3)
    (found,) = probe([str(checkpoint)], wishes, quiet(), device="cpu")
    assert found.linear is not None
    assert found.linear.raw.mean_dice > found.linear.trained.mean_dice
    assert verdict(replace(found, linear=lucky(found.linear))).worth != "yes"


def lucky(found: LinearProbe) -> LinearProbe:
    """The same with untrained networks that all did as badly as the worst."""
    worst = min(found.random, key=lambda marks: marks.mean_dice)
    return replace(found, random=(worst,) * len(found.random))


def test_collapsed_features_are_not_worth_it() -> None:
    assert verdict(probed(0.9, collapse=replace(HEALTHY, trained=(use(5),)))).worth == "no"


@pytest.mark.parametrize(
    ("scores", "word"),
    [((0.55, 0.65), "Still improving"), ((0.65, 0.66), "changes little"), ((0.65, 0.55), "become worse.*use c1.pth")],
)
def test_when_to_stop(scores: tuple[float, float], word: str) -> None:
    sentence = trend([probed(dice, epochs) for epochs, dice in enumerate(scores, start=1)])
    assert sentence is not None
    assert re.search(word, sentence)


def test_different_methods_have_no_trend() -> None:
    assert trend([probed(0.5, 1), replace(probed(0.6, 2), method="s3d")]) is None
    assert trend([probed(0.5)]) is None
