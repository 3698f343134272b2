"""What may silently cost the benefit of the pre-training is said, and nothing is said without reason."""

from dataclasses import replace

import pytest

from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.plan import Planned, plan_finetuning
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.scans.preprocess import BeyondStock
from tests.downstream.checkpoints import architecture, made_checkpoint
from tests.downstream.conftest import Make
from tests.downstream.datasets import NUMBER, PLANNERS, Made, change_json


def planned(checkpoint, **wish) -> Planned:
    return plan_finetuning(checkpoint, labelled_dataset(NUMBER, False), Wish(**{"part": "encoder", **wish}), "P")


def trained_at(*spacing: float):
    return made_checkpoint(spacing=list(spacing))


@pytest.mark.parametrize(
    ("trained", "finer"), [((4, 4, 4), False), ((5.7, 5.7, 5.7), False), ((4, 4, 5.8), True), ((8, 8, 8), True)]
)
def test_data_finer_than_0_7_of_pre_training_on_any_axis(make: Make, trained, finer: bool) -> None:
    make()  # 4 mm
    warnings = " ".join(planned(trained_at(*trained)).warnings)
    assert ("much finer" in warnings) == finer
    if finer:
        for words in ("28.72", "42.61", "--mode dataset"):
            assert words in warnings
    assert "much finer" not in " ".join(planned(trained_at(*trained), mode="dataset").warnings)
    assert "much finer" not in " ".join(planned(trained_at(*trained), mode="native").warnings)


def test_axes_are_compared_in_the_checkpoints_order(make: Make) -> None:
    make(Made(spacing=(6.0, 3.0, 3.0), shape=(30, 48, 48)))
    assert "much finer" not in " ".join(planned(trained_at(6, 3, 3)).warnings)
    assert "much finer" in " ".join(planned(trained_at(3, 3, 6)).warnings)
    turned = made_checkpoint(spacing=[3.0, 3.0, 6.0], transpose=(1, 2, 0))
    assert "much finer" not in " ".join(planned(turned).warnings)


@pytest.mark.parametrize("mode", ["dataset", "native"])
@pytest.mark.parametrize(("edge", "other"), [(4, False), (3, False), (5.5, False), (2.8, True), (6, True)])
def test_features_of_another_scale(make: Make, mode: str, edge: float, other: bool) -> None:
    make()
    warnings = " ".join(planned(trained_at(edge, edge, edge), mode=mode).warnings)
    assert ("learnt at another scale" in warnings) == other


def test_a_checkpoint_without_resampling_has_no_scale_to_compare_with(make: Make) -> None:
    make()
    checkpoint = made_checkpoint(spacing=[1.0, 1.0, 1.0], resampling_fn_data="no_resampling_hack")
    assert planned(checkpoint).warnings == ()
    assert "at another scale" not in " ".join(planned(checkpoint, mode="dataset").warnings)


def test_weights_that_mostly_stay_random_are_warned_of(make: Make) -> None:
    make(Made(shape=(96, 96, 96)))  # nnU-Net plans more stages than the checkpoint has
    found = planned(made_checkpoint(), mode="dataset")
    share = found.report.share_taken("encoder")
    assert share < 0.5
    assert f"Only {share:.0%} of the weights of the encoder" in " ".join(found.warnings)
    assert "Only" not in " ".join(planned(made_checkpoint()).warnings)


def test_thick_slices_and_a_network_that_knows_none(make: Make) -> None:
    make(Made(spacing=(5.0, 1.0, 1.0), shape=(20, 96, 96)))
    close = trained_at(1, 1, 1)
    assert "between them will be interpolated" in " ".join(planned(close).warnings)
    assert "thick (5 x 1 x 1 mm) and the network treats all axes alike" in " ".join(
        planned(close, mode="native").warnings
    )
    assert "thick" not in " ".join(planned(close, mode="dataset").warnings)
    made_for_them = architecture()
    made_for_them["arch_kwargs"]["kernel_sizes"] = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    flat = made_checkpoint(made_for_them, spacing=[5.0, 1.0, 1.0])
    assert planned(flat).warnings == ()


def test_scans_of_many_sizes_without_resampling(make: Make) -> None:
    make(Made(spread=3.0))
    assert "their voxels differ a lot" in " ".join(planned(made_checkpoint(), mode="native").warnings)
    for mode in ("like-pretrained", "dataset"):
        assert "differ a lot" not in " ".join(planned(made_checkpoint(), mode=mode).warnings)


def test_every_step_that_stock_cannot_repeat_is_named(make: Make) -> None:
    make()
    done = BeyondStock(clip_low=0.5, clip_high=99.0, crop="foreground")
    sentences = planned(replace(made_checkpoint(), beyond_stock=done)).beyond_stock
    assert len(sentences) == 3
    for words in ("at their 99th percentile", "at their 0.5th percentile", "cropped to the head or body"):
        assert sum(words in sentence for sentence in sentences) == 1
    assert all("nnU-Net does not repeat" in sentence for sentence in sentences)
    assert planned(made_checkpoint()).beyond_stock == ()


def test_a_network_of_ours_predicts_only_with_this_package(make: Make) -> None:
    make()
    warnings = planned(made_checkpoint(architecture("amaes_unet"))).warnings
    assert "AmaesUNet is not one of nnU-Net's networks" in " ".join(warnings)


def test_notes_of_the_reader_go_along_but_not_those_of_reconstruction(make: Make) -> None:
    make()
    checkpoint = replace(made_checkpoint(), notes=("of the weights",), reconstruction_notes=("of pictures",))
    assert planned(checkpoint).warnings == ("of the weights",)


def test_patches_that_are_mostly_padding(make: Make) -> None:
    make(Made(shape=(30, 48, 11)))
    (note,) = planned(made_checkpoint(patch_size=[64, 64, 64])).notes
    assert '--patch "32 48 12" holds them too' in note
    assert planned(made_checkpoint(), patch=(32, 48, 12)).notes == ()
    assert planned(made_checkpoint(), patch=(32, 48, 16)).notes == ()


def test_which_of_several_plans_of_nnunet_was_used(make: Make) -> None:
    folder = make(plans=tuple(PLANNERS))
    assert planned(made_checkpoint()).notes == ()  # they agree
    change_json(folder / "nnUNetPlans.json", transpose_forward=[2, 0, 1])
    (note,) = planned(made_checkpoint()).notes
    assert note.startswith("nnU-Net's plans nnUNetResEncUNetLPlans were used; nnUNetPlans differ")
    (folder / "nnUNetPlans.json").write_text("{")
    assert len(planned(made_checkpoint()).notes) == 1
