"""Normalisation, reader and orientation: carried from the checkpoint, or the dataset's own."""

import json
from dataclasses import replace

import pytest

from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.plan import Planned, plan_finetuning
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from tests.downstream.checkpoints import CT_INTENSITIES, made_checkpoint
from tests.downstream.conftest import Make
from tests.downstream.datasets import NUMBER, Made, change_json

MASKED = Made(channels=("CT", "T1"), relative_size_after_cropping=0.5)
FOUR = Made(channels=("T1", "T1c", "T2", "FLAIR"))


def planned(checkpoint, **wish) -> Planned:
    return plan_finetuning(checkpoint, labelled_dataset(NUMBER, False), Wish(**{"part": "encoder", **wish}), "P")


def ways(result: Planned) -> list[tuple[str, bool]]:
    configuration = result.configuration
    return list(zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True))


def test_one_scheme_is_carried_to_all_channels(make: Make) -> None:
    make(FOUR)
    checkpoint = made_checkpoint(normalization_schemes=["RescaleTo01Normalization"], use_mask_for_norm=[True])
    assert ways(planned(checkpoint)) == [("RescaleTo01Normalization", True)] * 4


def test_nnunets_own_scheme_and_mask_for_each_channel(make: Make) -> None:
    make(MASKED)
    result = planned(made_checkpoint(), normalisation="dataset")
    assert ways(result) == [("CTNormalization", False), ("ZScoreNormalization", True)]
    (warning,) = [each for each in result.warnings if "own normalisation" in each]
    assert "CT with CTNormalization, T1 with ZScoreNormalization inside the non-zero mask" in warning
    assert "of pre-training (ZScoreNormalization)" in warning


def test_ct_that_would_be_normalised_like_mr_is_warned_of(make: Make) -> None:
    make(MASKED)
    result = planned(made_checkpoint())
    assert ways(result) == [("ZScoreNormalization", False)] * 2
    (warning,) = [each for each in result.warnings if "is CT" in each]
    assert "channel CT" in warning and "--normalisation dataset" in warning


@pytest.mark.parametrize(("name", "is_ct"), [("ct_arterial", True), ("PET-CT", True), ("reCTum", False), ("T1", False)])
def test_channels_called_after_ct_are_noticed_though_nnunet_takes_them_for_mr(make: Make, name: str, is_ct) -> None:
    make(Made(channels=(name,)))
    warnings = " ".join(planned(made_checkpoint()).warnings)
    assert ("once the channel is called CT in dataset.json" in warnings) == is_ct


def test_channel_by_channel_where_the_numbers_agree(make: Make) -> None:
    make(FOUR)
    schemes = ["ZScoreNormalization", "RescaleTo01Normalization", "NoNormalization", "ZScoreNormalization"]
    checkpoint = made_checkpoint(channels=4, normalization_schemes=schemes, use_mask_for_norm=[True] * 4)
    assert ways(planned(checkpoint)) == [(scheme, True) for scheme in schemes]


def test_a_channel_map_decides_and_channels_that_start_at_zero_get_their_own(make: Make) -> None:
    make(FOUR)
    schemes = ["RescaleTo01Normalization", "NoNormalization"]
    checkpoint = made_checkpoint(channels=2, normalization_schemes=schemes, use_mask_for_norm=[True, False])
    result = planned(checkpoint, channel_map=(1, 0, 1, None))
    assert [scheme for scheme, _ in ways(result)] == [schemes[1], schemes[0], schemes[1], "ZScoreNormalization"]
    assert [inside for _, inside in ways(result)] == [False, True, False, False]
    with pytest.raises(UserError, match=r"2 channels were normalised in different ways .* --channel-map"):
        planned(checkpoint)
    assert len(ways(planned(checkpoint, normalisation="dataset"))) == 4


@pytest.mark.parametrize("part", ["encoder", None])
@pytest.mark.parametrize("channel_map", [(0,), (0, 0, 0, 1), (None,) * 4, (0, 0, 0, -1)])
def test_impossible_channel_maps_are_refused_for_treatment_and_control(make: Make, part, channel_map) -> None:
    make(FOUR)
    with pytest.raises(UserError, match="channel map"):
        planned(made_checkpoint(), part=part, channel_map=channel_map)


def ct_checkpoint(channels: int = 1):
    checkpoint = made_checkpoint(channels=channels, normalization_schemes=["CTNormalization"] * channels)
    known = {str(channel): CT_INTENSITIES for channel in range(channels)}
    return replace(checkpoint, plans={**checkpoint.plans, "foreground_intensity_properties_per_channel": known})


def test_ct_pre_training_clips_and_scales_by_its_own_numbers(make: Make) -> None:
    make(Made(channels=("CT", "CT")))
    carried, own = planned(ct_checkpoint()), planned(ct_checkpoint(), normalisation="dataset")
    key = "foreground_intensity_properties_per_channel"
    assert carried.plans[key] == {"0": CT_INTENSITIES, "1": CT_INTENSITIES}
    assert own.plans[key] == labelled_dataset(NUMBER, False).stock[key] != carried.plans[key]
    # The same scheme, but other data: never in one folder.
    assert carried.configuration["normalization_schemes"] == own.configuration["normalization_schemes"]
    assert carried.configuration["data_identifier"] != own.configuration["data_identifier"]


def test_ct_pre_training_does_not_clip_mr_at_hounsfield_units(make: Make) -> None:
    make(MASKED)
    with pytest.raises(UserError, match=r"trained on CT and clips .* channel T1 .* --normalisation dataset"):
        planned(ct_checkpoint())
    assert ways(planned(ct_checkpoint(), channel_map=(0, None)))[1] == ("ZScoreNormalization", True)
    without = replace(ct_checkpoint(), plans=made_checkpoint().plans)
    with pytest.raises(UserError, match="does not hold all intensities"):
        planned(without)


def test_colours_are_warned_of(make: Make) -> None:
    make()
    result = planned(made_checkpoint(normalization_schemes=["RGBTo01Normalization"]))
    assert "as colours from 0 to 255" in " ".join(result.warnings)


def test_a_carried_scheme_of_mr_to_mr_is_no_reason_to_warn(make: Make) -> None:
    make()
    assert planned(made_checkpoint()).warnings == ()


# ---------------------------------------------------------------------- reader and orientation


def files_end_with(folder, ending: str) -> None:
    change_json(folder / "dataset.json", file_ending=ending)


def test_volumes_are_turned_as_in_pre_training(make: Make) -> None:
    make()
    assert labelled_dataset(NUMBER, False).stock["image_reader_writer"] == "SimpleITKIO"
    assert planned(made_checkpoint()).plans["image_reader_writer"] == "NibabelIOWithReorient"


def test_files_that_cannot_be_turned_are_refused_or_taken_as_they_lie(make: Make) -> None:
    files_end_with(make(), ".nrrd")
    with pytest.raises(UserError, match=r"cannot do for the \.nrrd files .* --orientation asis"):
        planned(made_checkpoint())
    result = planned(made_checkpoint(), orientation="asis")
    assert result.plans["image_reader_writer"] == "SimpleITKIO"
    assert "mirrored or turned anatomy" in " ".join(result.warnings)


@pytest.mark.parametrize(("ending", "reader"), [(".nrrd", "SimpleITKIO"), (".nii", "NibabelIO")])
def test_as_stored_is_as_stored_whatever_reads_it(make: Make, ending: str, reader: str) -> None:
    files_end_with(make(), ending)
    result = planned(made_checkpoint(reader="NibabelIO"))
    assert result.plans["image_reader_writer"] == reader
    assert result.warnings == ()


def test_asis_undoes_a_turning_reader_of_the_dataset_too(make: Make) -> None:
    folder = make()
    change_json(folder / "nnUNetResEncUNetLPlans.json", image_reader_writer="NibabelIOWithReorient")
    assert planned(made_checkpoint(), orientation="asis").plans["image_reader_writer"] == "SimpleITKIO"


def test_a_reader_that_nnunet_lacks_is_replaced_and_named(make: Make) -> None:
    make()
    result = planned(made_checkpoint(reader="ZarrIO"))
    assert result.plans["image_reader_writer"] == "SimpleITKIO"
    assert "read with ZarrIO, which this nnU-Net does not have" in " ".join(result.beyond_stock)


def test_files_that_nnunet_cannot_read_are_refused(make: Make) -> None:
    files_end_with(make(), ".xyz")
    with pytest.raises(UserError, match=r"no reader for the \.xyz files .* convert them to \.nii\.gz"):
        planned(made_checkpoint(reader="SimpleITKIO"))


def test_preprocessed_data_are_shared_only_where_they_are_equal(make: Make) -> None:
    make(MASKED)
    plans = [
        planned(made_checkpoint()),
        planned(made_checkpoint(), normalisation="dataset"),
        planned(made_checkpoint(), orientation="asis"),
        planned(made_checkpoint(), mode="native"),
        planned(made_checkpoint(), mode="dataset"),
        planned(made_checkpoint(transpose=(2, 1, 0))),
        planned(made_checkpoint(use_mask_for_norm=[True])),
    ]
    assert len({each.configuration["data_identifier"] for each in plans[:4] + plans[5:]}) == 6
    same = [planned(made_checkpoint(), part=None), planned(made_checkpoint(), patch=(16, 16, 16), batch=3)]
    assert {each.configuration["data_identifier"] for each in same} == {plans[0].configuration["data_identifier"]}


def test_plans_are_plain_json(make: Make) -> None:
    make(MASKED)
    for mode in ("like-pretrained", "native", "dataset"):
        plans = planned(made_checkpoint(), mode=mode, gpu_memory=8).plans
        assert json.loads(json.dumps(plans)) == json.loads(json.dumps(plans, default=str))


def test_labels_are_resampled_as_nnunet_does_whatever_the_checkpoint_says(make: Make) -> None:
    folder = make()
    stock = json.loads((folder / "nnUNetResEncUNetLPlans.json").read_text())["configurations"]["3d_fullres"]
    for kwargs in ({}, {"is_seg": False, "order": 3}):
        found = planned(made_checkpoint(resampling_fn_mask_kwargs=kwargs)).configuration
        assert found["resampling_fn_seg"] == stock["resampling_fn_seg"]
        assert found["resampling_fn_seg_kwargs"] == stock["resampling_fn_seg_kwargs"]
        assert found["resampling_fn_seg_kwargs"]["is_seg"] is True


def test_data_clipped_by_other_numbers_lie_in_another_folder(make: Make) -> None:
    folder = make(Made(channels=("CT",)))
    before = planned(made_checkpoint(), normalisation="dataset").configuration["data_identifier"]
    carried = planned(made_checkpoint()).configuration["data_identifier"]
    plans = json.loads((folder / "nnUNetResEncUNetLPlans.json").read_text())
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1  # planned again with more cases
    (folder / "nnUNetResEncUNetLPlans.json").write_text(json.dumps(plans))
    assert planned(made_checkpoint(), normalisation="dataset").configuration["data_identifier"] != before
    assert planned(made_checkpoint()).configuration["data_identifier"] == carried  # z-scores need no such numbers


@pytest.mark.parametrize("change", [{"mean": float("nan")}, {"std": 0.0}, {"percentile_99_5": -2000.0}])
def test_ct_numbers_that_cannot_scale_are_refused_but_not_where_they_are_not_used(make: Make, change: dict) -> None:
    make(Made(channels=("CT",)))
    checkpoint = made_checkpoint(normalization_schemes=["CTNormalization"])
    impossible = {"0": {**CT_INTENSITIES, **change}}
    plans = {**checkpoint.plans, "foreground_intensity_properties_per_channel": impossible}
    checkpoint = replace(checkpoint, plans=plans)
    with pytest.raises(UserError, match="--normalisation dataset"):
        planned(checkpoint)
    assert ways(planned(checkpoint, normalisation="dataset")) == [("CTNormalization", False)]


def test_a_channel_that_shall_not_be_normalised_is_warned_of(make: Make) -> None:
    make(Made(channels=("noNorm", "T1")))
    warnings = " ".join(planned(made_checkpoint()).warnings)
    assert "noNorm with ZScoreNormalization and not with NoNormalization" in warnings and "T1" not in warnings


def test_fewer_schemes_than_channels_give_a_sentence(make: Make) -> None:
    make(Made(channels=("T1", "T2")))
    schemes = ["ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization"]
    checkpoint = made_checkpoint(channels=4, normalization_schemes=schemes, use_mask_for_norm=[False] * 3)
    with pytest.raises(UserError, match="3 values of normalisation for 4 channels"):
        planned(checkpoint, channel_map=(3, 0))
    assert planned(checkpoint, channel_map=(3, 0), normalisation="dataset").report is not None


def test_files_stored_in_different_ways_are_warned_of_where_they_are_read_as_stored(make: Make) -> None:
    make(Made(stored=("LPS", "RAS")))
    assert "(2 LPS, 2 RAS)" in " ".join(planned(made_checkpoint(reader="SimpleITKIO")).warnings)
    assert "LPS" not in " ".join(planned(made_checkpoint()).warnings)  # all are turned to RAS
