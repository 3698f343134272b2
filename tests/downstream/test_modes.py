"""Which network, voxels and patch each mode gives."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl_mae.checkpoints.transfer import load_into
from nnssl_mae.downstream.axes import geometry
from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.network import continued
from nnssl_mae.downstream.plan import Planned, plan_finetuning
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from nnssl_mae.networks.planned import network_shape, planned_network
from nnssl_mae.plans import CONFIGURATION
from tests.downstream.checkpoints import architecture, made_checkpoint
from tests.downstream.conftest import Make
from tests.downstream.datasets import NUMBER, Made

THICK = Made(spacing=(5.0, 1.0, 1.0), shape=(20, 96, 96))


def planned(checkpoint, **wish) -> Planned:
    return plan_finetuning(checkpoint, labelled_dataset(NUMBER, False), Wish(**{"part": "encoder", **wish}), "P")


def stock() -> dict:
    return labelled_dataset(NUMBER, False).configuration


def test_like_pretrained_keeps_network_voxels_patch_and_resampling(make: Make) -> None:
    make(THICK)
    checkpoint = made_checkpoint()
    configuration = planned(checkpoint).configuration
    assert configuration["spacing"] == [4.0, 4.0, 4.0]
    assert configuration["patch_size"] == [32, 32, 32]
    assert configuration["architecture"] == checkpoint.architecture
    for ours, theirs in (("data", "data"), ("seg", "mask")):
        for end in ("", "_kwargs"):
            assert configuration[f"resampling_fn_{ours}{end}"] == checkpoint.data[f"resampling_fn_{theirs}{end}"]
    # 20 slices of 5 mm and 96 voxels of 1 mm, at 4 mm
    assert configuration["median_image_size_in_voxels"] == [25.0, 24.0, 24.0]


@pytest.mark.parametrize("kind", ["resenc", "plain", "amaes_unet"])
def test_dataset_takes_nnunets_voxels_and_plans_the_network_for_them(make: Make, kind: str) -> None:
    make(THICK)
    checkpoint = made_checkpoint(architecture(kind, stages=3, blocks=2))
    result = planned(checkpoint, mode="dataset", part="encoder" if kind == "amaes_unet" else "encoder+decoder")
    configuration, own = result.configuration, stock()
    assert configuration["spacing"] == own["spacing"] == [5.0, 1.0, 1.0]
    assert configuration["patch_size"] == list(own["patch_size"])
    for key in own:
        if key.startswith("resampling_fn"):
            assert configuration[key] == own[key]
    kwargs, planned_kwargs = configuration["architecture"]["arch_kwargs"], own["architecture"]["arch_kwargs"]
    assert kwargs["strides"] == planned_kwargs["strides"]
    assert kwargs["kernel_sizes"] == planned_kwargs["kernel_sizes"]
    assert [1, 3, 3] in kwargs["kernel_sizes"]
    stages = planned_kwargs["n_stages"]
    assert kwargs["n_stages"] == stages > 3
    assert kwargs["features_per_stage"] == [4, 8, 16, 32, 64, 128, 256, 320][:stages]
    assert kwargs["n_blocks_per_stage" if kind == "resenc" else "n_conv_per_stage"] == [2] * stages
    assert kwargs["n_conv_per_stage_decoder"] == [2] * (stages - 1)
    # The tensors go into the network that nnU-Net will build from these plans.
    random = [fate.name for fate in result.report.random]
    load_into(planned_network(configuration["architecture"], 1, 3), result.tensors, random)


def test_native_resamples_nothing_and_keeps_the_network(make: Make) -> None:
    make(Made(spacing=(3.0, 2.0, 2.0), shape=(40, 60, 70)))
    checkpoint = made_checkpoint()
    configuration = planned(checkpoint, mode="native").configuration
    assert {configuration[f"resampling_fn_{what}"] for what in ("data", "seg", "probabilities")} == {
        "no_resampling_hack"
    }
    assert configuration["spacing"] == [3.0, 2.0, 2.0]
    assert configuration["median_image_size_in_voxels"] == [40.0, 60.0, 70.0]
    assert configuration["architecture"] == checkpoint.architecture


def test_a_checkpoint_without_resampling_goes_on_without(make: Make) -> None:
    make(Made(spacing=(3.0, 2.0, 2.0), shape=(40, 60, 70)))
    checkpoint = made_checkpoint(resampling_fn_data="no_resampling_hack", resampling_fn_data_kwargs={})
    configuration = planned(checkpoint).configuration
    assert configuration == planned(checkpoint, mode="native").configuration


def test_stages_are_continued_and_cut_from_the_checkpoints() -> None:
    network = architecture(stages=6, width=32)
    kwargs = network["arch_kwargs"] | {
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": [5, 4, 3, 2, 1],
    }
    cases = {
        (64, 64, 64): ([32, 64, 128, 256, 320], [1, 3, 4, 6, 6], [4, 3, 2, 1]),
        (160, 160, 160): ([32, 64, 128, 256, 320, 320], [1, 3, 4, 6, 6, 6], [5, 4, 3, 2, 1]),
        (256, 256, 256): ([32, 64, 128, 256, 320, 320, 320], [1, 3, 4, 6, 6, 6, 6], [5, 5, 4, 3, 2, 1]),
    }
    for patch, (widths, blocks, decoder) in cases.items():
        found = continued({**network, "arch_kwargs": kwargs}, (1.0, 1.0, 1.0), patch)
        assert found.patch == patch
        assert found.architecture["arch_kwargs"]["features_per_stage"] == widths
        assert found.architecture["arch_kwargs"]["n_blocks_per_stage"] == blocks
        assert found.architecture["arch_kwargs"]["n_conv_per_stage_decoder"] == decoder


def test_the_published_network_comes_out_as_it_is_at_its_own_patch() -> None:
    network = architecture(stages=6, width=32)
    assert (
        continued(network, (1.0, 1.0, 1.0), (160, 160, 160)).architecture["arch_kwargs"]
        | {"features_per_stage": network["arch_kwargs"]["features_per_stage"]}
        == network["arch_kwargs"]
    )


def test_widths_above_nnunets_largest_stay(make: Make) -> None:
    network = architecture(stages=3, width=200)
    found = continued(network, (1.0, 1.0, 1.0), (64, 64, 64))
    assert found.architecture["arch_kwargs"]["features_per_stage"] == [200, 400, 800, 800, 800]


def test_one_number_for_all_stages_is_understood() -> None:
    network = architecture(stages=3)
    kwargs = network["arch_kwargs"] | {"n_blocks_per_stage": 2, "n_conv_per_stage_decoder": 1}
    found = continued({**network, "arch_kwargs": kwargs}, (1.0, 1.0, 1.0), (64, 64, 64))
    assert found.architecture["arch_kwargs"]["n_blocks_per_stage"] == [2] * 5
    network_shape(found.architecture, 1)


@pytest.mark.parametrize("mode", ["like-pretrained", "native"])
@pytest.mark.parametrize(
    ("patch", "nearest"), [((30, 32, 32), "32 32 32"), ((45, 33, 32), "44 32 32"), ((4, 4, 4), "8 8 8")]
)
def test_a_patch_that_the_network_cannot_divide_is_refused(make: Make, mode: str, patch, nearest: str) -> None:
    make()
    with pytest.raises(UserError, match=f'nearest that fits is --patch "{nearest}"'):
        planned(made_checkpoint(), mode=mode, patch=patch)
    assert planned(made_checkpoint(), mode=mode, patch=(16, 32, 40)).configuration["patch_size"] == [16, 32, 40]


def test_with_mode_dataset_a_patch_decides_the_network_and_must_fit_it(make: Make) -> None:
    make()
    configuration = planned(made_checkpoint(), mode="dataset", patch=(64, 32, 32)).configuration
    _, strides, _, _, _ = get_pool_and_conv_props((4.0, 4.0, 4.0), (64, 32, 32), 4, 999)
    assert configuration["architecture"]["arch_kwargs"]["strides"] == [list(stride) for stride in strides]
    assert configuration["patch_size"] == [64, 32, 32]
    with pytest.raises(UserError, match='nearest that fits is --patch "40 32 32"'):
        planned(made_checkpoint(), mode="dataset", patch=(36, 32, 32))
    with pytest.raises(UserError, match="too small for a network with two stages"):
        planned(made_checkpoint(), mode="dataset", patch=(4, 4, 4))


def test_what_a_checkpoint_does_not_tell_is_the_datasets(make: Make) -> None:
    make(THICK)
    network = architecture()
    del network["arch_kwargs"]["strides"]
    bare = replace(made_checkpoint(), plans={}, data={}, architecture=network)
    for mode in ("like-pretrained", "native"):
        with pytest.raises(UserError, match=r"tiny\.pth does not tell .*preprocessed and the strides.* --mode dataset"):
            planned(bare, mode=mode)
    result = planned(bare, mode="dataset")
    labelled = labelled_dataset(NUMBER, False)
    for key in ("image_reader_writer", "transpose_forward", "transpose_backward"):
        assert result.plans[key] == labelled.stock[key]
    for key in ("spacing", "normalization_schemes", "use_mask_for_norm"):
        assert result.configuration[key] == labelled.configuration[key]
    assert "does not tell how its scans were preprocessed" in " ".join(result.notes)


def test_known_preprocessing_without_strides_needs_mode_dataset_and_is_carried(make: Make) -> None:
    make()
    checkpoint = made_checkpoint(use_mask_for_norm=[True])
    del checkpoint.architecture["arch_kwargs"]["strides"]
    with pytest.raises(UserError, match="does not tell the strides of its network, so --mode native"):
        planned(checkpoint, mode="native")
    result = planned(checkpoint, mode="dataset")
    assert result.configuration["use_mask_for_norm"] == [True]
    assert result.plans["image_reader_writer"] == "NibabelIOWithReorient"


# ---------------------------------------------------------------------- axes


@pytest.mark.parametrize("stored", [("PSR",), ("LIP",), ("RAS",), ("PSR", "ASL"), ("PSR", "LPS", "SAR")])
def test_voxels_of_cases_are_as_the_reader_gives_them(make: Make, nnunet_folders, stored) -> None:
    made = Made(spacing=(5.0, 2.0, 1.0), shape=(20, 40, 96), stored=stored)
    make(made)
    labelled = labelled_dataset(NUMBER, False)
    assert labelled.stock["image_reader_writer"] == "SimpleITKIO"
    images = sorted((nnunet_folders / "raw" / labelled.name / "imagesTr").iterdir())
    read = [NibabelIOWithReorient().read_images([str(image)])[1]["spacing"] for image in images]
    cases = geometry(labelled, "NibabelIOWithReorient", (0, 1, 2))
    np.testing.assert_allclose(cases.spacings, read, rtol=1e-5)
    as_stored = [NibabelIO().read_images([str(image)])[1]["spacing"] for image in images]
    np.testing.assert_allclose(geometry(labelled, "NibabelIO", (0, 1, 2)).spacings, as_stored, rtol=1e-5)
    transposed = geometry(labelled, "NibabelIOWithReorient", (2, 0, 1))
    np.testing.assert_allclose(transposed.spacings, np.array(read)[:, [2, 0, 1]], rtol=1e-5)


def test_thick_slices_stay_thick_when_the_reader_turns_the_volume(make: Make) -> None:
    """Stored sagittally: nnU-Net's first axis, of 5 mm, is left to right, the last one of a volume turned to RAS."""
    make(replace(THICK, stored=("PSR",)))
    configuration = planned(made_checkpoint(), mode="dataset").configuration
    assert stock()["spacing"] == [5.0, 1.0, 1.0]
    assert configuration["spacing"] == [1.0, 1.0, 5.0]
    assert configuration["patch_size"] == list(stock()["patch_size"])[1:] + list(stock()["patch_size"])[:1]
    assert configuration["architecture"]["arch_kwargs"]["kernel_sizes"][0] == [3, 3, 1]
    asis = planned(made_checkpoint(), mode="dataset", orientation="asis").configuration
    assert asis["spacing"] == [5.0, 1.0, 1.0]


@pytest.mark.parametrize("mode", ["like-pretrained", "dataset", "native"])
@pytest.mark.parametrize(("reader", "transpose"), [("NibabelIOWithReorient", (0, 1, 2)), ("SimpleITKIO", (2, 0, 1))])
def test_nnunets_preprocessing_gives_cases_of_the_planned_size(
    make: Make, tmp_path: Path, mode: str, reader: str, transpose
) -> None:
    made = Made(spacing=(5.0, 2.0, 1.0), shape=(12, 30, 48), stored=("PSR",))
    folder = make(made)
    result = planned(made_checkpoint(reader=reader, transpose=transpose), mode=mode)
    example = nibabel.load(folder.parents[1] / "raw" / folder.name / "imagesTr" / "case0_0000.nii.gz")
    image = np.random.default_rng(0).uniform(1, 2, made.shape[::-1]).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, example.affine), tmp_path / "case_0000.nii.gz")
    manager = PlansManager(result.plans)
    data, _, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(tmp_path / "case_0000.nii.gz")], None, manager, manager.get_configuration(CONFIGURATION), {}
    )
    assert list(data.shape[1:]) == result.configuration["median_image_size_in_voxels"]
    if mode != "like-pretrained":
        own = [properties["spacing"][axis] for axis in transpose]
        assert result.configuration["spacing"] == pytest.approx(own)


def test_the_axis_order_of_the_checkpoint_is_carried(make: Make) -> None:
    make(Made(spacing=(1.0, 1.0, 5.0), shape=(96, 96, 20)))
    labelled = labelled_dataset(NUMBER, False)
    assert labelled.stock["transpose_forward"] == [2, 0, 1]
    result = planned(made_checkpoint(transpose=(1, 2, 0), reader="SimpleITKIO"), mode="dataset")
    assert result.plans["transpose_forward"] == [1, 2, 0]
    assert result.plans["transpose_backward"] == [2, 0, 1]
    assert result.configuration["spacing"] == [1.0, 5.0, 1.0]
    assert result.configuration["median_image_size_in_voxels"] == [96.0, 20.0, 96.0]
    assert "thick slices do not lie along the first axis" in " ".join(result.warnings)


def test_files_in_different_orientations_need_plans_in_one(make: Make) -> None:
    make(replace(THICK, stored=("PSR", "RAS")))
    with pytest.raises(UserError, match="overwrite_image_reader_writer"):
        planned(made_checkpoint(), mode="dataset")
    assert planned(made_checkpoint(), mode="dataset", orientation="asis").configuration["spacing"] == [5.0, 1.0, 1.0]


def test_files_in_different_orientations_do_not_matter_for_equal_axes(make: Make) -> None:
    make(Made(stored=("PSR", "RAS")))
    assert planned(made_checkpoint(), mode="dataset").configuration["spacing"] == [4.0, 4.0, 4.0]


def test_without_the_raw_files_the_doubt_about_axes_is_said(make: Make, nnunet_folders) -> None:
    make(THICK)
    (nnunet_folders / "raw" / "Dataset004_Made" / "imagesTr" / "case0_0000.nii.gz").write_bytes(b"damaged")
    assert "not known along which axis" in " ".join(planned(made_checkpoint(), mode="dataset").warnings)
    bare = made_checkpoint(reader="SimpleITKIO")
    assert "not known along which axis" not in " ".join(planned(bare, mode="dataset").warnings)
