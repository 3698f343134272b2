"""From a scan to a patch and its reconstruction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_mae.catalogue.find import Scan
from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.evaluation.reconstruct import Hiding, choose_hiding, load_network, preprocess_as_trained, reconstruct
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.scans.foreground import foreground_mask
from nnssl_mae.scans.one_case import Target, Task, prepare_case
from nnssl_mae.scans.preprocess import BeyondStock, Preprocessed
from nnssl_mae.scans.records import Finished
from nnssl_mae.scans.storage import open_volume
from tests.checkpoints.files import tiny_recipe, write_own
from tests.evaluation.test_preview_scans import write_scan

CPU = torch.device("cpu")


def checkpoint_of(folder: Path, **parts: dict) -> Checkpoint:
    write_own(folder / "x.pth", tiny_recipe(**parts))
    return read_checkpoint(folder / "x.pth")


def random_volume(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "beyond",
    [
        BeyondStock(),
        BeyondStock(clip_high=90.0),
        BeyondStock(clip_low=20.0, clip_high=90.0),
        BeyondStock(crop="foreground"),
    ],
)
def test_volumes_are_those_of_the_preparation(tmp_path: Path, beyond: BeyondStock) -> None:
    checkpoint = checkpoint_of(tmp_path)
    assert checkpoint.reconstruction is not None
    checkpoint = replace(checkpoint, beyond_stock=beyond)
    scan = Scan(write_scan(tmp_path / "x.nii.gz", orientation="LPS"), "x", "x")
    data = checkpoint.data
    configuration = {
        **data,
        "resampling_fn_seg": data["resampling_fn_mask"],
        "resampling_fn_seg_kwargs": data["resampling_fn_mask_kwargs"],
        "architecture": checkpoint.architecture,
    }
    plans = {
        **checkpoint.plans,
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {CONFIGURATION: configuration},
    }
    record = prepare_case(Task(scan, "", 0.0), plans, beyond, Target(tmp_path, tmp_path))
    assert isinstance(record, Finished)
    prepared = open_volume(tmp_path / "x.b2nd")[0].astype(np.float32)
    np.testing.assert_allclose(preprocess_as_trained(scan, checkpoint).volume[0], prepared, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clip", [None, 90.0])
def test_the_clip_of_the_recipe_is_known(tmp_path: Path, clip: float | None) -> None:
    checkpoint = checkpoint_of(tmp_path, data={"clip_percentile": clip})
    assert checkpoint.reconstruction is not None
    assert checkpoint.beyond_stock == BeyondStock(clip_high=clip)


def test_padding_and_excluded_voxels_do_not_count(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    network = load_network(checkpoint, tmp_path)
    volume = random_volume((12, 40, 16))
    excluded = np.zeros(volume.shape, bool)
    excluded[:, :16] = True
    scan = Preprocessed(volume[None], excluded[None], {})
    result = reconstruct(network, checkpoint, scan, Hiding(0.5, 4, 0), CPU)
    assert result.corner == (-2, 12, 0)
    np.testing.assert_array_equal(result.original[2:14], volume[:, 12:28])
    counted = result.hidden.copy()
    counted[:2] = counted[14:] = counted[:, :4] = False
    error = np.square(result.output - result.original)[counted].mean()
    low, high = np.percentile(volume, (0.5, 99.5))
    assert result.metrics["psnr"] == pytest.approx(10 * np.log10((high - low) ** 2 / error), abs=1e-3)


def test_hidden_voxels_have_no_influence(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    network = load_network(checkpoint, tmp_path)
    volume = random_volume((16, 16, 16))
    result = reconstruct(network, checkpoint, Preprocessed(volume[None], None, {}), Hiding(0.6, 4, 5), CPU)
    other = np.where(result.hidden, 7.0, volume).astype(np.float32)
    again = reconstruct(network, checkpoint, Preprocessed(other[None], None, {}), Hiding(0.6, 4, 5), CPU)
    np.testing.assert_array_equal(result.output, again.output)


def test_normalised_blocks_are_shown_with_their_true_brightness(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, loss={"target_normalisation": "block"})
    network = load_network(checkpoint, tmp_path)
    volume = random_volume((16, 16, 16)) * 0.1
    volume[:8] += 50
    scan, hiding = Preprocessed(volume[None], None, {}), Hiding(0.5, 4, 0)
    shown = reconstruct(network, checkpoint, scan, hiding, CPU)
    assert checkpoint.reconstruction is not None
    plain = replace(checkpoint, reconstruction=replace(checkpoint.reconstruction, target_normalisation="none"))
    given = reconstruct(network, plain, scan, hiding, CPU)
    # The two halves differ by far more than blocks vary inside: any picture with the true means would have an R2 of 1.
    assert shown.metrics["r2"] < 0.5
    blocks = volume.reshape(4, 4, 4, 4, 4, 4)
    mean, std = (f(blocks, axis=(1, 3, 5), keepdims=True) for f in (np.mean, np.std))
    expected = given.output.reshape(blocks.shape) * std + mean
    np.testing.assert_allclose(shown.output, expected.reshape(volume.shape), rtol=1e-3, atol=1e-3)


def test_a_recipe_that_hides_the_body_only_leaves_air_visible(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, masking={"region": "foreground"})
    hiding = choose_hiding(checkpoint, tmp_path, None, 0, None)
    volume = np.zeros((16, 16, 16), np.float32)
    volume[4:, 4:12] = 5 + random_volume((12, 8, 16))
    result = reconstruct(
        load_network(checkpoint, tmp_path), checkpoint, Preprocessed(volume[None], None, {}), hiding, CPU
    )
    assert result.hidden.any()
    assert foreground_mask(volume)[result.hidden].all()


def test_defaults_are_those_of_the_training(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, masking={"ratio": [0.6, 0.9], "block_size": 8})
    assert choose_hiding(checkpoint, tmp_path, None, 3, None) == Hiding(0.75, 8, 3)
    assert choose_hiding(checkpoint, tmp_path, 0.2, 3, 4) == Hiding(0.2, 4, 3)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    weights = dict(checkpoint.weights)
    name = "decoder.seg_layers.1.weight"
    for changed, sentence in (
        (
            {**weights, name: torch.zeros(2, 4, 1, 1, 1)},
            rf"{name} is \(2, 4, 1, 1, 1\) in the file and \(1, 4, 1, 1, 1\)",
        ),
        ({**weights, "more": torch.zeros(1)}, "0 tensors are missing and 1 have no place, such as more"),
        ({n: t for n, t in weights.items() if n.startswith("encoder.")}, "it holds no decoder"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_network(replace(checkpoint, weights=changed), tmp_path)


def test_a_patch_that_the_network_cannot_divide_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path)
    odd = replace(checkpoint, data={**checkpoint.data, "patch_size": [16, 18, 16]})
    with pytest.raises(UserError, match=r"patch of \[16, 18, 16\] voxels, which its network cannot divide"):
        load_network(odd, tmp_path)


def test_several_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes 2 channels"):
        load_network(replace(checkpoint_of(tmp_path), channels=2), tmp_path)
