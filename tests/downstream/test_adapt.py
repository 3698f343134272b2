"""What ``adapt`` writes, and what it leaves alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.checkpoints.transfer import load_into
from nnssl_mae.downstream.adapt import Adaptation, adapt
from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.networks.planned import planned_network
from nnssl_mae.plans import CONFIGURATION, read_block
from nnssl_mae.recipes.finetuning import finetune_recipe
from tests.downstream.checkpoints import architecture, made_checkpoint
from tests.downstream.conftest import Make
from tests.downstream.datasets import NAME, NUMBER, Made
from tests.labelled import write_labelled_with_plans

RECIPE = finetune_recipe(False, 4, 2)
CONTROL = finetune_recipe(True, 4, 2)
STEM = "encoder.stem.convs.0.conv.weight"
ENCODER, BOTH, SCRATCH = Wish("encoder"), Wish("encoder+decoder"), Wish(None)
TWO_CHANNELS = Made(channels=("T1", "T2"))


def plans_of(folder: Path, name: str = "P") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def initialisation(folder: Path, name: str = "P") -> dict:
    return read_block(plans_of(folder, name)["configurations"][CONFIGURATION], "finetune", name)["initialisation"]


def written(name: str = "P", wish: Wish = ENCODER, overwrite: bool = False, seed: int = 3, **data) -> Adaptation:
    recipe = CONTROL if wish.part is None else RECIPE
    return adapt(made_checkpoint(seed=seed, **data), NUMBER, name, recipe, wish, overwrite)


def test_treatment_and_control_differ_in_weights_and_schedule_only(make: Make) -> None:
    folder = make(TWO_CHANNELS)
    for mode in ("like-pretrained", "dataset", "native"):
        wish = Wish("encoder", mode, gpu_memory=1.0)
        written(f"Treatment_{mode}", wish)
        written(f"Control_{mode}", replace(wish, part=None))
        treatment, control = plans_of(folder, f"Treatment_{mode}"), plans_of(folder, f"Control_{mode}")
        blocks = [plans["configurations"][CONFIGURATION].pop("nnssl_mae") for plans in (treatment, control)]
        assert treatment | {"plans_name": ""} == control | {"plans_name": ""}
        assert blocks[0]["initialisation"]["transfer"] == "encoder"
        assert blocks[1]["initialisation"] is None
        assert blocks[0]["recipe"]["peak_learning_rate"] == 1e-3
        assert blocks[1]["recipe"]["peak_learning_rate"] == 1e-2
        assert not (folder / f"Control_{mode}_init.safetensors").exists()


def test_what_is_not_about_images_is_the_datasets(make: Make) -> None:
    folder = make()
    written()
    plans, stock = plans_of(folder), plans_of(folder, "nnUNetResEncUNetLPlans")
    assert list(plans["configurations"]) == [CONFIGURATION]
    assert plans["plans_name"] == "P"
    for key in ("dataset_name", "label_manager", "original_median_spacing_after_transp", "experiment_planner_used"):
        assert plans[key] == stock[key]
    batch_dice = [
        each["batch_dice"] for each in (*plans["configurations"].values(), stock["configurations"]["3d_fullres"])
    ]
    assert batch_dice[0] == batch_dice[1]


def test_the_plans_say_what_was_loaded_and_from_where_without_a_path(make: Make) -> None:
    folder = make(TWO_CHANNELS)
    result = written(wish=BOTH)
    block = initialisation(folder)
    file = folder / block["file"]
    tensors = safetensors.torch.load_file(file)
    assert block["sha256"] == sha256(file)
    assert block["transfer"] == "encoder+decoder"
    assert block["origin"] == made_checkpoint().origin.as_json()
    assert [each["name"] for each in block["adapted"]] == [STEM]
    assert "divided by 2" in block["adapted"][0]["how"]
    assert set(tensors) == {fate.name for fate in (*result.report.loaded, *result.report.adapted)}
    assert set(block["left_random"]) == {fate.name for fate in result.report.random}
    original = made_checkpoint().weights[STEM]
    torch.testing.assert_close(tensors[STEM].sum(dim=1, keepdim=True), original)
    assert any(name.startswith("decoder.stages.") for name in tensors)
    assert not any("seg_layers" in name or name.startswith("decoder.encoder") for name in tensors)
    assert str(folder.parent) not in (folder / "P.json").read_text()


@pytest.mark.parametrize("part", ["encoder", "encoder+decoder"])
@pytest.mark.parametrize(("kind", "mode"), [("resenc", "dataset"), ("plain", "dataset"), ("resenc", "native")])
def test_the_written_tensors_go_into_the_planned_network(make: Make, kind: str, mode: str, part) -> None:
    """Thick slices, four channels and more stages than were pre-trained."""
    folder = make(Made(spacing=(5.0, 1.0, 1.0), shape=(20, 96, 96), channels=("a", "b", "c", "d")))
    checkpoint = made_checkpoint(architecture(kind))
    adapt(checkpoint, NUMBER, "P", RECIPE, Wish(part, mode))
    block = initialisation(folder)
    configuration = PlansManager(plans_of(folder)).get_configuration(CONFIGURATION)
    network = planned_network(plans_of(folder)["configurations"][CONFIGURATION]["architecture"], 4, 3)
    tensors = safetensors.torch.load_file(folder / block["file"])
    load_into(network, tensors, block["left_random"])
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert torch.isfinite(network(torch.zeros(1, 4, *configuration.patch_size))).all()
    with pytest.raises(UserError, match="missing"):
        load_into(network, {name: tensor for name, tensor in tensors.items() if "stages.0" not in name}, [])


@pytest.mark.parametrize(
    ("labels", "order", "heads"),
    [
        ({"background": 0, "rim": 1, "core": 2}, None, 3),
        ({"background": 0, "rim": 1, "core": 2, "ignore": 3}, None, 3),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], 2),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2], 2),
    ],
)
def test_regions_and_the_ignore_label(make: Make, labels, order, heads: int) -> None:
    folder = make(Made(labels=labels, regions_class_order=order))
    written()
    assert labelled_dataset(NUMBER, False).heads == heads
    # As nnU-Net's trainer asks for them.
    dataset_json = json.loads((folder / "dataset.json").read_text())
    manager = PlansManager(plans_of(folder)).get_label_manager(dataset_json)
    assert isinstance(manager, LabelManager)
    assert manager.num_segmentation_heads == heads
    assert manager.has_regions == (order is not None)
    assert manager.has_ignore_label == ("ignore" in labels)


def test_old_datasets_that_say_modality(make: Make) -> None:
    folder = make()
    content = json.loads((folder / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    (folder / "dataset.json").write_text(json.dumps(content))
    assert len(written().configuration["normalization_schemes"]) == 1


def test_what_is_said_is_handed_on(make: Make) -> None:
    make()
    result = written(spacing=[9.0, 9.0, 9.0])
    assert (result.plans_name, result.dataset) == ("P", NAME)
    assert "much finer" in " ".join(result.warnings)
    assert result.gpu_memory is not None and "nnU-Net" in result.gpu_memory_how
    assert written("Q", SCRATCH).report is None


# ---------------------------------------------------------------------- replacing


def initial_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith("_init.safetensors"))


def test_replaced_plans_never_name_tensors_of_another_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any write or removal, the plans that are there name a file that is there, whole and theirs."""
    folder = make()
    written()
    moments = 0

    def check(*_: object) -> None:
        nonlocal moments
        moments += 1
        block = initialisation(folder)
        assert sha256(folder / block["file"]) == block["sha256"]

    for name in ("replace", "unlink", "write_bytes"):
        original = getattr(Path, name)

        def watched(path: Path, *args, _original=original, **kwargs):
            check()
            result = _original(path, *args, **kwargs)
            check()
            return result

        monkeypatch.setattr(Path, name, watched)
    written(overwrite=True, seed=4)
    written(overwrite=True, seed=5)
    assert moments > 8
    assert initial_files(folder) == [initialisation(folder)["file"]]
    assert not list(folder.glob(".*"))


def test_the_same_again_is_the_same(make: Make) -> None:
    folder = make()
    written()
    before = (folder / "P.json").read_bytes()
    written(overwrite=True)
    assert (folder / "P.json").read_bytes() == before
    assert initial_files(folder) == ["P_init.safetensors"]


def test_treatment_and_control_do_not_replace_each_other(make: Make) -> None:
    folder = make()
    written("T")
    written("C", wish=SCRATCH)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name, wish in (("T", SCRATCH), ("C", ENCODER)):
        with pytest.raises(UserError, match="choose another name with -n"):
            written(name, wish=wish, overwrite=True)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_cases_that_are_not_preprocessed_are_counted(make: Make) -> None:
    folder = make()
    result = written("T")
    assert (result.missing, result.cases) == (4, 4)
    data = folder / result.configuration["data_identifier"]
    data.mkdir()
    for case in ("a", "b", "c"):
        (data / f"{case}.b2nd").touch()
        (data / f"{case}_seg.b2nd").touch()
        if case != "c":  # killed before its properties were written
            (data / f"{case}.pkl").touch()
    assert written("T2").missing == 2


def test_tensors_of_other_plans_are_left_alone(make: Make) -> None:
    folder = make()
    written("P_large")
    written("P")
    written("P", overwrite=True, seed=9)
    other = initialisation(folder, "P_large")
    assert sha256(folder / other["file"]) == other["sha256"]
    # Plans that were edited by hand must not make us remove anything else.
    plans = plans_of(folder)
    plans["configurations"][CONFIGURATION]["nnssl_mae"]["initialisation"]["file"] = "../nnUNetResEncUNetLPlans.json"
    (folder / "P.json").write_text(json.dumps(plans))
    before = set(folder.parent.rglob("*"))
    written("P", overwrite=True, seed=11)
    assert before <= set(folder.parent.rglob("*"))


def test_results_of_replaced_plans_are_named(make: Make, nnunet_folders: Path) -> None:
    make()
    (nnunet_folders / "results" / NAME / f"nnUNetTrainerMAEFinetune__P__{CONFIGURATION}").mkdir(parents=True)
    assert "results of other plans of this name" in " ".join(written().warnings)  # the plans were removed since
    assert "results of other plans" not in " ".join(written(overwrite=True).warnings)  # the same plans again
    assert "results of other plans" in " ".join(written(overwrite=True, seed=8).warnings)
    assert "results of other plans" not in " ".join(written("Q").warnings)


def test_results_folders_that_are_not_set_are_no_problem(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.delenv("nnUNet_results")
    assert written().warnings == ()


# ---------------------------------------------------------------------- with nnU-Net itself


def test_the_users_own_preprocessed_data_survives(pretrained: Path, prepared: Path, nnunet_folders: Path) -> None:
    """Stock preprocessing of every configuration in our plans deletes and fills our folder only."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    folder = write_labelled_with_plans(nnunet_folders, prepared)
    adapt(read_checkpoint(pretrained), 4, "P", RECIPE, ENCODER)
    # nnU-Net's defaults for -c: the user forgot to give a configuration.
    preprocess([4], "P", ("2d", "3d_fullres", "3d_lowres", CONFIGURATION), num_processes=(2, 2, 2, 2))
    identifier = plans_of(folder)["configurations"][CONFIGURATION]["data_identifier"]
    assert len(list((folder / identifier).glob("*.pkl"))) == 2
    assert (folder / "nnUNetPlans_3d_fullres" / "precious.b2nd").read_text() == "a week of preprocessing"


def test_a_dataset_without_plans_is_planned_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """By nnU-Net's fingerprint and ResEnc L planner, which the end-to-end test runs; here they only say so."""
    folder, ran = make(), []
    plans = (folder / "nnUNetResEncUNetLPlans.json").read_text()
    (folder / "nnUNetResEncUNetLPlans.json").unlink()

    def plan(numbers: list[int], experiment_planner_class_name: str) -> None:
        ran.append((numbers, experiment_planner_class_name))
        (folder / "nnUNetResEncUNetLPlans.json").write_text(plans)

    monkeypatch.setattr("nnssl_mae.downstream.labelled.extract_fingerprints", lambda *_, **__: ran.append("measured"))
    monkeypatch.setattr("nnssl_mae.downstream.labelled.plan_experiments", plan)
    with pytest.raises(UserError, match="no plans of nnU-Net yet; make them with nnUNetv2_extract_fingerprint -d 4"):
        labelled_dataset(NUMBER, plan_if_missing=False)
    assert ran == []
    assert written().report is not None
    assert ran == ["measured", ([NUMBER], "nnUNetPlannerResEncL")]
