"""``nnssl-mae preview``, on small scans and checkpoints with random weights."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from rich.console import Console
from scipy.ndimage import gaussian_filter, map_coordinates

from nnssl_mae import cli
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation import preview_scans
from nnssl_mae.evaluation.preview import PreviewCase
from nnssl_mae.evaluation.preview_scans import preview
from tests.checkpoints.files import adaptation_plan, tiny_recipe, with_configuration, write_nnssl, write_own, write_s3d

SUFFIXES = ("preview.png", "input.nii.gz", "hidden_input.nii.gz", "reconstruction.nii.gz", "combined.nii.gz")


def write_scan(path: Path, seed: int = 0, orientation: str = "RAS", size: int = 24) -> Path:
    """A smooth random body inside empty borders, tilted, with voxels of 3.5 x 4 x 5 mm."""
    rng = np.random.default_rng(seed)
    shape = (size + 2, size + 6, size - 2)
    volume = gaussian_filter(rng.normal(size=shape), 2)
    volume = 500 + 200 * volume / volume.std()
    body = np.zeros(shape, bool)
    body[2:-3, 3:-2, 1:-4] = True
    tilt = np.deg2rad(11)
    affine = np.eye(4)
    affine[:3, :3] = [[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
    affine[:3, :3] *= (3.5, 4.0, 5.0)
    affine[:3, 3] = (-40, 12, 7)
    image = nibabel.Nifti1Image((volume * body).astype(np.float32), affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return write_scan(tmp_path / "scans" / "sub-01_T1w.nii.gz")


def quiet(*_: object) -> Console:
    return Console(quiet=True)


def read(folder: Path, case: str = "sub-01_T1w") -> dict[str, np.ndarray]:
    return {
        name.split(".")[0]: np.asarray(nibabel.load(folder / f"{case}_{name}").dataobj)
        for name in SUFFIXES
        if name.endswith(".nii.gz")
    }


def test_files_and_table(tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    write_scan(scan.with_name("second.nii"), seed=1)
    preview(tmp_path / "x.pth", [scan.parent], tmp_path / "out", Console(width=100))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{case}_{suffix}" for case in ("sub-01_T1w", "second") for suffix in SUFFIXES}
    printed = capsys.readouterr().out
    for case in ("sub-01_T1w", "second"):
        # PSNR, SSIM and R2 are numbers; 38 of 64 blocks are hidden: the middle of 0.5 to 0.7.
        assert re.search(rf"{case} +│ +-?\d+\.\d+ +│ +(-?\d+\.\d+|undefined) +│ +-?\d+\.\d+ +│ 59% +│ 4x4x4", printed)


def test_what_the_files_hold(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "sub-01_T1w.nii.gz", size=34)  # larger than the patch: no padding
    network = write_own(tmp_path / "x.pth", tiny_recipe())
    preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet(), ratio=0.5, seed=3, block_size=8, device="cpu")
    files = read(tmp_path / "out")
    assert files["input"].shape == (16, 16, 16)
    hidden = (files["hidden_input"] == 0) & (files["input"] != 0)
    np.testing.assert_array_equal(files["hidden_input"][~hidden], files["input"][~hidden])
    blocks = hidden.reshape(2, 8, 2, 8, 2, 8).mean(axis=(1, 3, 5))
    assert set(np.unique(blocks)) == {0.0, 1.0}
    assert blocks.sum() == 4
    np.testing.assert_array_equal(files["combined"], np.where(hidden, files["reconstruction"], files["input"]))
    with torch.inference_mode():
        patch = torch.from_numpy(np.ascontiguousarray(files["input"].transpose(2, 1, 0)))[None, None]
        mask = torch.from_numpy(blocks.transpose(2, 1, 0) > 0)[None, None]
        expected = network(patch, mask)[0, 0].numpy().transpose(2, 1, 0)
    np.testing.assert_allclose(files["reconstruction"], expected, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path, scan: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        preview(tmp_path / "x.pth", [scan], tmp_path / name, quiet(), seed=seed)
    for suffix in SUFFIXES:
        one, again, other = ((tmp_path / f / f"sub-01_T1w_{suffix}").read_bytes() for f in ("one", "again", "other"))
        assert one == again, suffix
        assert (one == other) == (suffix == "input.nii.gz"), suffix


@pytest.mark.parametrize("reader", ["NibabelIOWithReorient", "SimpleITKIO"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "IAR"])
@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2)])
def test_the_patch_lies_over_the_scan(
    tmp_path: Path, reader: str, orientation: str, transpose: tuple[int, int, int]
) -> None:
    """Every voxel of the patch shows what the scan has at its place in the world."""
    scan = write_scan(tmp_path / "x.nii.gz", orientation=orientation, size=34)
    write_own(tmp_path / "x.pth", tiny_recipe(), reader, transpose, spacing=(4.0, 3.5, 4.5))
    preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet())
    patch, original = nibabel.load(tmp_path / "out" / "x_input.nii.gz"), nibabel.load(scan)
    voxels = np.stack(np.meshgrid(*map(np.arange, patch.shape), indexing="ij"), axis=-1)
    to_scan = np.linalg.inv(original.affine) @ patch.affine
    places = voxels @ to_scan[:3, :3].T + to_scan[:3, 3]
    expected = map_coordinates(np.asarray(original.dataobj), np.moveaxis(places, -1, 0), order=3)
    assert np.corrcoef(expected.ravel(), np.asarray(patch.dataobj).ravel())[0, 1] > 0.99


def test_pictures_are_upright_and_in_proportion_however_the_scan_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[PreviewCase] = []
    monkeypatch.setattr(preview_scans, "draw_preview", lambda cases, *_: drawn.extend(cases))
    # No axis is resampled or cut, so both hold the same voxels.
    for orientation, spacing in (("RAS", (5.0, 4.0, 3.5)), ("PIL", (3.5, 5.0, 4.0))):
        scan = write_scan(tmp_path / orientation / "x.nii.gz", orientation=orientation, size=15)
        write_own(tmp_path / "x.pth", tiny_recipe(), "SimpleITKIO", spacing=spacing)
        preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet())
    assert drawn[0].spacing == pytest.approx((5.0, 4.0, 3.5), abs=1e-4)
    assert drawn[1].spacing == pytest.approx((5.0, 4.0, 3.5), abs=1e-4)
    one, other = (case.original for case in drawn)
    # The centre of an axis of even length may be cut a voxel later when it is flipped.
    assert max(
        np.corrcoef(one[1:-1, 1:-1, 1:-1].ravel(), np.roll(other, shift, (0, 1, 2))[1:-1, 1:-1, 1:-1].ravel())[0, 1]
        for shift in np.ndindex(3, 3, 3)
        for shift in [tuple(s - 1 for s in shift)]
    ) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        {"network": {"sparse": True, "mask_tokens": True, "densify": True}},
        {"network": {"decoder": "light", "skips": False}},
        {"masking": {"hidden_value": "token"}},
        {"masking": {"region": "foreground"}},
        {"loss": {"target_normalisation": "block"}},
        {"data": {"clip_percentile": 99.0}},
        {"data": {"normalisation": "RescaleTo01Normalization"}},
    ],
)
def test_every_kind_of_our_networks_reconstructs(tmp_path: Path, scan: Path, parts: dict) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe(**parts))
    preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet())
    assert np.isfinite(read(tmp_path / "out")["reconstruction"]).all()


@pytest.mark.parametrize("kind", ["mae", "s3d"])
def test_files_of_nnssl(tmp_path: Path, scan: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = with_configuration(adaptation_plan(), spacing_style="median", spacing=[4, 4, 4])
    (write_nnssl if kind == "mae" else write_s3d)(tmp_path / "checkpoint_final.pth", plan)
    preview(tmp_path, [scan], tmp_path / "out", Console(width=200))
    files = read(tmp_path / "out")
    assert files["input"].shape == (32, 32, 32)
    hidden = files["hidden_input"] != files["input"]
    assert 0.5 < hidden[files["input"] != 0].mean() < 1
    assert ("'all_modules' are the trained ones" in capsys.readouterr().out) == (kind == "s3d")


def snapshot(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_one_bad_scan_of_several_writes_nothing(tmp_path: Path, scan: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    whole = scan.read_bytes()
    scan.with_name("zz.nii.gz").write_bytes(whole[: len(whole) // 2])
    before = snapshot(tmp_path)
    sentence = r"zz\.nii\.gz has voxels that cannot be read to their end .* leave it out or repair it"
    with pytest.raises(Exception, match=sentence):
        preview(tmp_path / "x.pth", [scan.parent], tmp_path / "out", quiet())
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ratio", "1.5"], "--ratio 1.5 is not possible; give a share between 0 and 1"),
        (["--ratio", "nan"], "--ratio nan is not possible"),
        (["--block-size", "9"], "--block-size 9 is not possible in a patch of [16, 16, 16]; give 1 to 8"),
        (["--block-size", "0"], "--block-size 0 is not possible"),
        (["--seed", "-1"], "--seed -1 is not possible"),
        (["--device", "tpu"], "--device tpu is not possible; use cpu or cuda"),
        (["-o", "x.pth/out"], "Nothing can be written to x.pth/out"),
        (["-o", "x.pth"], "Nothing can be written to x.pth ("),
        (["nowhere.nii.gz"], "nowhere.nii.gz does not exist"),
    ],
)
def test_bad_options_get_a_sentence_and_write_nothing(
    tmp_path: Path,
    scan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    before = snapshot(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nnssl-mae", "preview", "x.pth", str(scan), *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert sentence in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, scan: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    for device in ("cpu", "cuda"):
        preview(tmp_path / "x.pth", [scan], tmp_path / device, quiet(), device=device)
    one, other = (read(tmp_path / device)["reconstruction"] for device in ("cpu", "cuda"))
    np.testing.assert_allclose(one, other, atol=0.02)  # TF32 convolutions


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_gets_a_sentence(tmp_path: Path, scan: Path) -> None:
    write_own(tmp_path / "x.pth", tiny_recipe())
    with pytest.raises(Exception, match="torch finds no GPU here; use --device cpu"):
        preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet(), device="cuda")


def test_weights_of_another_network_write_nothing(tmp_path: Path, scan: Path) -> None:
    write_nnssl(tmp_path / "x.pth", adaptation_plan(architecture_plans={"arch_class_name": "ResEncL"}))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="does not hold the encoder that it describes"):
        preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet())
    assert snapshot(tmp_path) == before


def test_a_scan_is_never_replaced_by_an_output(tmp_path: Path, scan: Path) -> None:
    """``a.nii.gz`` and ``a_input.nii.gz`` are both scans, and the patch of the first would be called as the second."""
    write_own(tmp_path / "x.pth", tiny_recipe())
    second = write_scan(scan.with_name("sub-01_T1w_input.nii.gz"), seed=1)
    before = second.read_bytes()
    with pytest.raises(Exception, match=r"sub-01_T1w_input\.nii\.gz would replace a scan"):
        preview(tmp_path / "x.pth", [scan.parent], scan.parent, quiet())
    assert second.read_bytes() == before


def test_outputs_never_replace_each_other(tmp_path: Path, scan: Path) -> None:
    """The input of ``a_hidden`` would be called as the hidden input of ``a``."""
    write_own(tmp_path / "x.pth", tiny_recipe())
    write_scan(scan.with_name("sub-01_T1w_hidden.nii.gz"), seed=1)
    with pytest.raises(UserError, match=r"both be written to .*sub-01_T1w_hidden_input\.nii\.gz; preview them one by"):
        preview(tmp_path / "x.pth", [scan.parent], tmp_path / "out", quiet())
    assert not (tmp_path / "out").exists()


def test_names_are_printed_as_they_are_and_blocks_as_used(
    tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets and colons are markup and emoji to rich; blocks of 7 do not fill a patch of 16."""
    write_own(tmp_path / "x.pth", tiny_recipe())
    folder = tmp_path / "[red]:smile:"
    lonely = folder / "a[bold]_exclude.nii.gz"
    preview_this = write_scan(folder / "scan.nii.gz")
    lonely.write_bytes(preview_this.read_bytes())
    preview(tmp_path / "x.pth", [folder], folder / "[/x]", Console(width=300), block_size=7)
    printed = capsys.readouterr().out
    assert f"{lonely} is an exclusion mask" in printed
    assert f"files a scan to {folder / '[/x]'}" in printed
    assert "4x4x4" in printed


def test_pictures_of_normalised_blocks_say_what_was_given(
    tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(preview_scans, "draw_preview", lambda _cases, _path, title: titles.append(title))
    sentence = "brightness and contrast of each block are the true ones: this recipe does not predict them"
    for normalisation in ("block", "none"):
        write_own(tmp_path / "x.pth", tiny_recipe(loss={"target_normalisation": normalisation}))
        preview(tmp_path / "x.pth", [scan], tmp_path / "out", Console(width=200))
        said = normalisation == "block"
        assert (sentence in titles.pop()) == said
        assert (sentence in capsys.readouterr().out) == said


def test_a_hostile_checkpoint_is_refused(tmp_path: Path, scan: Path) -> None:
    torch.save({"network_weights": Path("x")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds code beside weights, which is never run"):
        preview(tmp_path / "x.pth", [scan], tmp_path / "out", quiet())
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_our_own_training(tmp_path: Path, pretrained: Path, scans_folder: Path) -> None:
    """The whole way: prepared, trained, read back; the preview is of the volumes it was trained on."""
    scan = sorted(scans_folder.rglob("*.nii.gz"))[0]
    preview(pretrained, [scan], tmp_path / "out", quiet())
    files = read(tmp_path / "out", case="sub-00_T1w")
    assert files["input"].shape == (32, 32, 32)
    assert read_checkpoint(pretrained).reconstruction is not None
