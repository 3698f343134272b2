"""A study file becomes the expected commands, or a sentence that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.study.budget import stock_trainer, stock_trainers
from nnssl_mae.study.page import notes
from nnssl_mae.study.plan import Plan, plan_study
from nnssl_mae.study.reading import read_study
from nnssl_mae.study.steps import Step, step_keys
from tests.study.datasets import set_folders, write_labelled, write_prepared

TWO_ARMS = """
    name: S
    datasets: [4]
    arms:
      stock: {stock: {planner: nnUNetPlannerResEncM, gpu_memory: 4}}
      mae: {recipe: smoke, adapt: {patch: [32, 32, 32], batch: 2}}
    labelled: [3, 1]
    seeds: [0]
    epochs: 5
    pretraining: {dataset: 900, seeds: [7]}
    device: cpu
    processes: 2
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_folders(tmp_path, monkeypatch)
    write_labelled(tmp_path, 4, "Tiny", tests=2)
    write_labelled(tmp_path, 5, "Other")
    write_prepared(tmp_path, 900, "Scans")
    return tmp_path


def plan(folders: Path, text: str) -> Plan:
    file = folders / "study.yaml"
    file.write_text(dedent(text))
    return plan_study(read_study(file), file)


def steps(folders: Path, text: str) -> dict[str, Step]:
    return {step.name: step for step in plan(folders, text).steps}


def said(step: Step) -> str:
    """As typed, without numbers of processes and where the study lies."""
    aside = step.aside if step.kind in ("recipe", "adapt") else ()
    return " ".join(("" if step.results is None else f"[{step.results}]", *step.command, *aside)).strip()


def test_two_arms_with_two_label_counts(folders: Path) -> None:
    found = steps(folders, TWO_ARMS)
    recipe = found["recipe_mae_p7"].command[-2]
    pre = "results/pretraining/Dataset900_Scans/nnUNetTrainerMAE__" + recipe
    tune = "-tr nnUNetTrainerMAEFinetune -p S_mae_p7 -device cpu"
    stock = "-tr nnUNetTrainer_5epochs -p S_stock -device cpu"
    study = "nnssl-mae study --work"
    assert {name: said(step) for name, step in found.items()} == {
        "plan_004": "nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerResEncL --no_pp --clean",
        "plan_004_stock": "nnUNetv2_plan_experiment -d 4 -pl nnUNetPlannerResEncM -gpu_memory_target 4 "
        "-overwrite_plans_name S_stock",
        "preprocess_004_stock": "nnUNetv2_preprocess -d 4 -plans_name S_stock -c 3d_fullres",
        "splits_004": "nnssl-mae splits -d 4 --labelled 1 3 --repeats 1 --seed 0",
        "train_004_stock_n1r0_s0": f"[results/seed_0] nnUNetv2_train 4 3d_fullres 100 {stock}",
        "train_004_stock_n3r0_s0": f"[results/seed_0] nnUNetv2_train 4 3d_fullres 101 {stock}",
        "recipe_mae_p7": f"nnssl-mae pretrain -d 900 --set seed=7 -p {recipe} --plan-only --recipe smoke",
        "pretrain_mae_p7": "[results/pretraining] nnUNetv2_train 900 3d_fullres_mae all -tr nnUNetTrainerMAE "
        f"-p {recipe} -device cpu",
        "adapt_004_mae_p7": "nnssl-mae adapt -d 4 -n S_mae_p7 --patch 32 32 32 --batch 2 --epochs 5 "
        f"--iterations 250 --schedule warmup {pre}__3d_fullres_mae/fold_all/checkpoint_final.pth",
        "preprocess_004_mae_p7": "nnUNetv2_preprocess -d 4 -plans_name S_mae_p7 -c 3d_fullres_mae",
        "train_004_mae_n1r0_s0": f"[results/seed_0] nnUNetv2_train 4 3d_fullres_mae 100 {tune}",
        "train_004_mae_n3r0_s0": f"[results/seed_0] nnUNetv2_train 4 3d_fullres_mae 101 {tune}",
        "floor_004": f"{study} floor:004",
        "gather_004": f"{study} gather:004",
        "compare": "nnssl-mae compare -d 4 --arm stock=nnUNetTrainer_5epochs__S_stock__3d_fullres "
        "--arm mae=nnUNetTrainerMAEFinetune__S_mae_p*__3d_fullres_mae --arm floor=Floor__TrainingLabels__none "
        "--results seed_0=compared/results/seed_0 --control stock -o comparison",
        "gates": f"{study} gates",
    }
    assert {name: found[name].needs for name in ("pretrain_mae_p7", "adapt_004_mae_p7", "train_004_mae_n1r0_s0")} == {
        "pretrain_mae_p7": ("recipe_mae_p7",),
        "adapt_004_mae_p7": ("plan_004", "pretrain_mae_p7"),
        "train_004_mae_n1r0_s0": ("adapt_004_mae_p7",),
    }
    assert found["train_004_mae_n1r0_s0"].after == ("preprocess_004_mae_p7", "splits_004")
    assert found["train_004_mae_n1r0_s0"].resume == ("--c",) and found["train_004_mae_n1r0_s0"].steps == 1250
    model = Path("results/seed_0/Dataset004_Tiny/nnUNetTrainerMAEFinetune__S_mae_p7__3d_fullres_mae/fold_100")
    assert found["train_004_mae_n1r0_s0"].makes == (model / "checkpoint_final.pth", model / "validation/summary.json")


def test_every_repetition_has_results_of_its_own_and_a_pretraining_seed(folders: Path) -> None:
    found = steps(folders, TWO_ARMS.replace("seeds: [0]", "seeds: [0, 1, 2]").replace("seeds: [7]", "seeds: [7, 8]"))
    trainings = [step for step in found.values() if step.name.startswith("train_004_mae_n1")]
    assert [(str(step.results), step.command[7]) for step in trainings] == [
        ("results/seed_0", "S_mae_p7"), ("results/seed_1", "S_mae_p8"), ("results/seed_2", "S_mae_p7"),
    ]  # fmt: skip
    assert len({step.makes for step in found.values() if step.kind == "train"}) == 12


def test_control_differs_in_its_weights_and_schedule_only(folders: Path) -> None:
    (folders / "weights.pth").write_bytes(b"1")
    text = """
        name: S
        datasets: [4]
        arms:
          mae: {checkpoint: weights.pth, adapt: {mode: dataset, channel_map: "0 -"}}
          control: {scratch: mae, set: {layer_decay: 0.5}, peak_learning_rate: 0.005}
        epochs: 3
        iterations: 100
        seeds: [0]
        floor: false
    """
    found = steps(folders, text)
    treated, control = found["adapt_004_mae"], found["adapt_004_control"]
    start, weights = ("nnssl-mae", "adapt", "-d", "4", "-n"), str(folders / "weights.pth")
    length = ("--epochs", "3", "--iterations", "100")
    options = ("--mode", "dataset", "--channel-map", "0 -")
    assert treated.command == (*start, "S_mae", *options, *length)
    changes = ("--set", "layer_decay=0.5", "--set", "peak_learning_rate=0.005")
    assert control.command == (*start, "S_control", *options, "--from-scratch", *length, *changes)
    assert (treated.aside, control.aside) == (("--schedule", "warmup", weights), ("--schedule", "scratch", weights))
    assert "floor_004" not in found and "--control control" in said(found["compare"])


def test_tuning_is_elsewhere_and_each_arm_takes_what_was_chosen_for_it(folders: Path) -> None:
    tuning = "tuning: {dataset: 5, learning_rates: [1e-2, 1e-3], schedules: [warmup, sawtooth]}"
    text = TWO_ARMS.replace("epochs: 5", f"epochs: 5\n    {tuning}").replace(
        "    labelled", "      control: {scratch: mae}\n    labelled"
    )
    found = steps(folders, text)
    tuned = {name: step for name, step in found.items() if name.startswith("tune_")}
    # Two rates and two schedules; the control cannot train a decoder on random features first.
    assert sorted(tuned) == [
        *(f"tune_control_t{n}_all" for n in range(2)), *(f"tune_mae_t{n}_all" for n in range(4)),
    ]  # fmt: skip
    assert all(step.command[1] == "5" and str(step.results) == "results/tuning" for step in tuned.values())
    assert found["choose_mae"].needs == tuple(f"tune_mae_t{n}_all" for n in range(4))
    adapt = found["adapt_004_mae_p7"]
    assert "choose_mae" in adapt.needs and adapt.aside[:2] == ("--schedule", "chosen/mae.yaml")
    assert not any(step.needs and "train_004" in step.name for step in tuned.values())
    assert "choose_stock" not in found


def test_test_sets_are_predicted_and_compared_one_by_one(folders: Path) -> None:
    text = TWO_ARMS.replace("device", "test: {4: {}}\n    device")
    found = steps(folders, text)
    images, references = (folders / "raw" / "Dataset004_Tiny" / name for name in ("imagesTs", "labelsTs"))
    root = "predictions/Dataset004_Tiny"
    out = f"{root}/mae/seed_0"
    predict = found["predict_004_mae_n1r0_s0"]
    assert said(predict) == (
        f"[results/seed_0] nnUNetv2_predict -d 4 -i {images} -o {out}/fold_100 -p S_mae_p7 -c 3d_fullres_mae "
        "-tr nnUNetTrainerMAEFinetune -f 100 -device cpu"
    )
    assert predict.makes == tuple(Path(out, "fold_100", f"case{n}.nii.gz") for n in range(2))
    assert said(found["compare"]) == (
        f"nnssl-mae compare -d 4 --references {references} --predictions stock=compared/{root}/stock/seed_0 "
        f"--predictions mae=compared/{out} --predictions floor=compared/{root}/floor/seed_0 --control stock "
        "-o comparison/Dataset004_Tiny"
    )


def test_unlabelled_scans_are_prepared_without_those_of_the_labelled_sets(folders: Path) -> None:
    (folders / "scans").mkdir()
    text = TWO_ARMS.replace("dataset: 900,", "dataset: 901, scans: [scans], set: {data: {spacing: [3, 3, 3]}},")
    found = steps(folders, text)
    assert said(found["prepare_901"]) == (
        "nnssl-mae prepare -d 901 -n StudyScans --set data.spacing=[3, 3, 3] --exclude-dataset 4"
    )
    assert found["prepare_901"].aside == ("--recipe", "smoke", "-np", "2", str(folders / "scans"))
    assert found["recipe_mae_p7"].needs == ("prepare_901",)


def test_folds_have_the_numbers_that_the_dataset_gave_them(folders: Path) -> None:
    folder = folders / "preprocessed" / "Dataset004_Tiny"
    folder.mkdir()
    content = {
        "version": 1, "seed": 0, "stock_folds": 5, "validation_from": {"fold": 0}, "subject_regex": None,
        "validation": ["case5"], "subjects": {f"case{n}": f"case{n}" for n in range(6)},
        "orders": [["case0", "case1", "case2"]],
        "folds": {"104": {"labelled": 3, "repeat": 0, "missing": []}},
    }  # fmt: skip
    (folder / "nnssl_folds.json").write_text(json.dumps(content))
    found = steps(folders, TWO_ARMS)
    assert [found[f"train_004_mae_{word}_s0"].command[3] for word in ("n1r0", "n3r0")] == ["105", "104"]
    proof = found["splits_004"].proof
    assert proof is not None and "fold numbers" in proof()  # until one label has the number 105, too


def test_change_of_an_arm_changes_the_keys_of_what_depends_on_it_only(folders: Path) -> None:
    before = step_keys(plan(folders, TWO_ARMS).steps)
    after = step_keys(plan(folders, TWO_ARMS.replace("recipe: smoke", "recipe: smoke, schedule: default")).steps)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "adapt_004_mae_p7", "preprocess_004_mae_p7", "train_004_mae_n1r0_s0", "train_004_mae_n3r0_s0", "gather_004",
        "compare", "gates",
    }  # fmt: skip
    longer = step_keys(plan(folders, TWO_ARMS.replace("labelled: [3, 1]", "labelled: [3, 1, all]")).steps)
    assert all(longer[name] == key for name, key in before.items() if name.startswith(("train", "pretrain", "adapt")))


def test_study_folder_may_move_with_its_files(folders: Path) -> None:
    text = TWO_ARMS.replace("{recipe: smoke,", "{recipe: mine.yaml, schedule: tuned.yaml,").replace(
        "    labelled", "      given: {checkpoint: weights.pth}\n    labelled"
    )
    keys = []
    for place in ("here", "there"):
        (folders / place).mkdir()
        (folders / place / "mine.yaml").write_text("base: smoke\n")
        (folders / place / "tuned.yaml").write_text("base: warmup\npeak_learning_rate: 2e-3\n")
        (folders / place / "weights.pth").write_bytes(b"1")
        (folders / place / "study.yaml").write_text(dedent(text))
        file = folders / place / "study.yaml"
        keys.append(step_keys(plan_study(read_study(file), file).steps))
    assert keys[0] == keys[1]


def test_several_schedules_are_several_arms_of_one_pretraining(folders: Path) -> None:
    found = steps(folders, TWO_ARMS.replace("recipe: smoke", "recipe: smoke, schedule: [warmup, valley]"))
    assert {"adapt_004_mae-warmup_p7", "adapt_004_mae-valley_p7"} <= found.keys()
    assert [name for name, step in found.items() if step.kind == "pretrain"] == ["pretrain_mae-warmup_p7"]


def test_another_pretraining_repeats_the_treatment_and_not_the_control(folders: Path) -> None:
    text = TWO_ARMS.replace("    labelled", "      control: {scratch: mae}\n    labelled")
    before = step_keys(plan(folders, text).steps)
    after = step_keys(plan(folders, text.replace("seeds: [7]", "seeds: [7], set: {masking: {ratio: 0.5}}")).steps)
    assert before["train_004_mae_n1r0_s0"] != after["train_004_mae_n1r0_s0"]
    assert before["train_004_control_n1r0_s0"] == after["train_004_control_n1r0_s0"]
    wider = step_keys(plan(folders, text.replace("seeds: [7]", "seeds: [7], set: {network.base_features: 8}")).steps)
    assert before["train_004_control_n1r0_s0"] != wider["train_004_control_n1r0_s0"]


OTHER_VOLUMES = TWO_ARMS.replace("{dataset: 900,", "{dataset: 900, scans: [scans],").replace(
    "    labelled", "      amaes: {recipe: amaes_resenc}\n    labelled"
)


def test_an_arm_whose_recipe_needs_other_volumes_learns_on_a_dataset_of_its_own(folders: Path) -> None:
    (folders / "scans").mkdir()
    (folders / "preprocessed" / "Dataset900_Scans").rename(folders / "preprocessed" / "Dataset900_StudyScans")
    with pytest.raises(UserError, match=r"Arm amaes: .* other volumes than dataset 900 .*\(data\..*unlabelled: 901"):
        plan(folders, OTHER_VOLUMES)
    found = steps(folders, OTHER_VOLUMES.replace("amaes_resenc", "amaes_resenc, unlabelled: 901"))
    assert {"prepare_900", "prepare_901"} <= found.keys()
    assert found["prepare_901"].command[2:4] == ("-d", "901")
    assert found["prepare_901"].aside[:2] == ("--recipe", "amaes_resenc")
    assert found["prepare_901"].aside[-1] == found["prepare_900"].aside[-1], "of the same scans"
    assert found["recipe_amaes_p7"].needs == ("prepare_901",) and found["recipe_mae_p7"].needs == ("prepare_900",)
    assert said(found["pretrain_amaes_p7"]).startswith("[results/pretraining] nnUNetv2_train 901 ")


@pytest.mark.parametrize("study", ["small", "reference"])
def test_the_studies_in_the_documentation_can_be_planned(folders: Path, study: str) -> None:
    """Every recipe loads, and each learns on volumes that fit it."""
    for number, name in ((911, "StudyBrains"), (912, "StudyTuning")):
        write_labelled(folders, number, name, cases=20, tests=2)
    (folders / "scans").mkdir()
    plan(folders, (Path(__file__).parents[2] / "docs" / "study" / f"{study}.yaml").read_text())


def test_stock_budgets_are_those_of_the_installed_trainers() -> None:
    assert stock_trainer(5, 250) == "nnUNetTrainer_5epochs" and stock_trainer(1000, 250) == "nnUNetTrainer"
    assert stock_trainer(25, 50) == "nnUNetTrainer_5epochs"  # as many steps in other epochs
    assert {1, 5, 10, 20, 50, 100, 250, 500, 1000} <= stock_trainers().keys()
    with pytest.raises(UserError, match=r"3000 steps.*250, 1250, 2500.*nearest is epochs: 10, iterations: 250"):
        stock_trainer(30, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("labelled: [3, 1]", "labeled: [3, 1]"), "unknown key 'labeled', did you mean 'labelled'"),
        (("{recipe: smoke,", "{recpie: smoke,"), "arm mae, is not valid: unknown key 'recpie', did you mean 'recipe'"),
        (("gpu_memory: 4", "gpu_memroy: 4"), "arm stock, is not valid: .*did you mean 'stock.gpu_memory'"),
        (("epochs: 5", "epochs: 7"), "1750 steps, and stock nnU-Net has no trainer"),
        (("datasets: [4]", "datasets: [44]"), "There is no dataset 44"),
        (("dataset: 900", "dataset: 901"), "901 is not prepared"),
        (("{recipe: smoke,", "{recipe: smoke, unlabelled: 4,"), "dataset 4 is labelled and pre-trained on"),
        (("{stock:", "{unlabelled: 901, stock:"), "unlabelled is for an arm with a recipe"),
        (("recipe: smoke", "recipe: smoek"), "no recipe 'smoek', did you mean 'smoke'"),
        (("recipe: smoke", "checkpoint: weights.pth"), "no checkpoint .*weights.pth"),
        (("recipe: smoke", "recipe: smoke, checkpoint: x.pth"), "exactly one of"),
        (("recipe: smoke", "recipe: smoke, schedule: wramup"), "did you mean 'warmup'"),
        (("seeds: [0]", "seeds: [0, 0]"), "names something twice"),
        (("labelled: [3, 1]", "labelled: [0]"), "labelled must be numbers of 1 or more"),
        (("mae:", "my_arm:"), "arm my_arm cannot be used"),
        (("labelled: [3, 1]", "controls: [stok]"), "no arm 'stok', did you mean 'stock'"),
        (("labelled: [3, 1]", "tuning: {dataset: 4}"), "tuning.dataset 4 is one of the compared"),
        (("seeds: [7]", "seeds: [7, 8]"), "2 pre-training seeds need as many"),
        (("labelled: [3, 1]", "test: {4: {images: nowhere}}"), "no folder .*nowhere"),
        (("labelled: [3, 1]", "test: {5: {}}"), "no images for dataset 4"),
        (("gpu_memory: 4", "trainer: nnUNetTrainer_10epochs"), "not known to train the study's 1250 steps"),
        (("gpu_memory: 4}}", "gpu_memory: 4}, schedule: warmup}"), "stock nnU-Net has its own schedule"),
        (
            ("gpu_memory: 4", "trainer: nnUNetTrainerDA5"),
            "DA5 is not known .* 1250 steps; .*nnUNetTrainer_5epochs does",
        ),
        (("labelled: [3, 1]", "labelled: [1, 5]"), "labelled: 5 is more than the 4 training cases"),
        (("labelled: [3, 1]", "tuning: {dataset: 5, labelled: [9]}"), "9 is more than the 4 .*Dataset005_Other"),
        (("labelled: [3, 1]", "test: {4: {images: imagesTr}}"), "holds the training images"),
        (("labelled: [3, 1]", "test: [1]"), r"test must be a section .*\(got \[1\]\)"),
        (("labelled: [3, 1]", "test: {four: {}}"), "test must be a section with the images of each dataset, by its nu"),
        (("labelled: [3, 1]", "controls: [floor]\n    floor: false"), "'floor' is there with floor: true only"),
        (("labelled: [3, 1]", "environment: {nnUNet_raw: /x}"), "nnUNet_raw says where this study's data lie"),
        (("labelled: [3, 1]", "environment: {'A=B': 1}"), "'A=B' is no name of a variable"),
        (("recipe: smoke", "recipe: smoke, schedule: []"), "mae has an empty list of schedules"),
        (("recipe: smoke", "recipe: smoke, schedule: [a/x.yaml, b/x.yaml]"), "two arms mae-x"),
        (("mae: {", "mae-warmup: {recipe: mae}\n      mae: {schedule: [warmup], "), "two arms mae-warmup"),
    ],
)
def test_what_is_wrong_is_named(folders: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in TWO_ARMS
    with pytest.raises(UserError, match=message):
        plan(folders, TWO_ARMS.replace(*change))


@pytest.mark.parametrize("content", [{"labels": {}}, {"labels": {}, "file_ending": 5}, []])
def test_unusable_dataset_json_is_named(folders: Path, content: object) -> None:
    (folders / "raw" / "Dataset004_Tiny" / "dataset.json").write_text(json.dumps(content))
    for text in (TWO_ARMS, TWO_ARMS.replace("labelled: [3, 1]", "test: {4: {}}")):
        with pytest.raises(UserError, match=r"Dataset004_Tiny/dataset\.json (has no usable|holds no JSON)"):
            plan(folders, text)


def test_checkpoint_of_the_hub_without_a_revision_is_noted(folders: Path) -> None:
    text = TWO_ARMS.replace("recipe: smoke", "checkpoint: hf://owner/name")
    assert any("mae names no revision of hf://owner/name" in note for note in notes(plan(folders, text).study))
    pinned = plan(folders, text.replace("owner/name", "owner/name@abc")).study
    assert not any("revision" in note for note in notes(pinned))


def test_controls_must_fit(folders: Path) -> None:
    wrong = TWO_ARMS.replace("    labelled", "      control: {scratch: stock}\n    labelled")
    with pytest.raises(UserError, match="'stock' has no pre-trained weights"):
        plan(folders, wrong)
    frozen = TWO_ARMS.replace("    labelled", "      control: {scratch: mae, schedule: frozen}\n    labelled")
    with pytest.raises(UserError, match="cannot train with the schedule 'frozen'"):
        plan(folders, frozen)


def test_study_may_start_from_another(folders: Path) -> None:
    (folders / "study.yaml").write_text(dedent(TWO_ARMS))
    (folders / "small.yaml").write_text("base: study.yaml\nlabelled: [1]\n")
    assert read_study(folders / "small.yaml").labelled == (1,)
    with pytest.raises(UserError, match="no study file"):
        read_study(folders / "absent.yaml")
