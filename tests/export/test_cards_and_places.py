import os
import re
from pathlib import Path

import pytest
import torch
import yaml

from nnssl_mae.checkpoints.names import under_one_name
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.errors import UserError
from nnssl_mae.files import sha256
from nnssl_mae.recipes.reading import parse_recipe
from tests.checkpoints.files import adaptation_plan, write_nnssl
from tests.export.written import all_bytes, export, own, own_amaes_unet, recipe

FORMS = ["safetensors", "nnssl", "nnunet"]


def header(folder: Path) -> dict:
    card = (folder / "README.md").read_text()
    return yaml.safe_load(card.split("---\n")[1])


def test_the_header_is_what_the_hub_reads(tmp_path: Path) -> None:
    own(tmp_path)
    export(tmp_path, tmp_path / "open", "safetensors", licence="CC-BY-4.0")
    assert header(tmp_path / "open") == {
        "license": "cc-by-4.0",
        "library_name": "nnssl_mae",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["medical-imaging", "3d", "nnU-Net", "self-supervised-learning", "pre-training"],
    }
    export(tmp_path, tmp_path / "own", "safetensors", licence="our clinic's: ask us")
    assert header(tmp_path / "own")["license"] == "other"
    assert header(tmp_path / "own")["license_name"] == "our-clinic-s-ask-us"


@pytest.mark.parametrize("said", ["CC BY-SA 4.0", "cc_by_sa_4.0", "CC-BY-SA-4.0"])
def test_a_licence_is_called_as_the_hub_calls_it(said: str, tmp_path: Path) -> None:
    own(tmp_path)
    export(tmp_path, tmp_path / "out", "safetensors", licence=said)
    assert header(tmp_path / "out")["license"] == "cc-by-sa-4.0"
    assert "license_name" not in header(tmp_path / "out")
    assert f"Of these weights: {said}." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("trainer", "claims"),
    [("BaseMAETrainer_BS8_1000ep", True), ("SparkTrainer", True), ("VoCoTrainer", False), ("SwinUNETRTrainer", False)],
)
def test_only_masked_autoencoders_are_said_to_reconstruct(trainer: str, claims: bool, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    write_nnssl(path, adaptation_plan(), trainer_name=trainer, logging={"val_losses": [0.5]})
    export(path, tmp_path / "out", "nnssl")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"pre-trained without labels ({trainer})" in card
    assert "| validation loss | 0.5 |" in card
    assert ("were hidden and reconstructed" in card, "how well hidden blocks" in card) == (claims, claims)


FORGED = {
    "name": "x\n---\nlicense: mit\n---",
    "data": "two lines\n## Licence\n\nAnything goes",
    "licence": "mit\n## More",
    "hours": "/srv/mueller",
    "metrics": {"patient Mueller": 1.0, "PSNR [dB]": 21.0, "SSIM": float("nan"), "R2": 10**400},
    "scans": {"/srv/mueller": 3, "training": 3, "validation": 1.5},
    "source": {
        "label": "/srv/mueller/neurology\\scan.pth",
        "sha256": "f" * 64,
        "format": "AMAES",
        "version": "/srv/mueller",
        "a": {"deep": ["/srv/mueller"]},
        "citations": ["Mueller"],
    },
}


@pytest.mark.parametrize("form", ["safetensors", "nnssl"])
def test_what_an_earlier_card_says_is_taken_as_far_as_it_is_known(form, tmp_path: Path) -> None:
    path = own(tmp_path, model_card=FORGED, logging={})
    export(path, tmp_path / "out", form)
    card = (tmp_path / "out" / "README.md").read_text()
    lines = card.splitlines()
    assert f"Exported by nnssl_mae from `checkpoint_final.pth` (nnssl_mae), SHA-256 `{sha256(path)}`." in card
    assert f"itself exported from `scan.pth` (AMAES), SHA-256 `{'f' * 64}`" in card
    assert "# x --- license: mit ---" in lines
    assert "two lines ## Licence Anything goes" in lines
    assert "| PSNR [dB] | 21 |" in lines
    assert "Scans: 3 for training." in lines
    assert lines.count("## Licence") == 1
    assert lines.count("---") == 2
    for content in all_bytes(tmp_path / "out").values():
        assert b"mueller" not in content.lower()
        assert b"neurology" not in content


@pytest.mark.parametrize("label", ["hf://owner/name@abc", "hf://../../srv/mueller", "a/b/", None, 3])
def test_the_label_of_an_earlier_source_is_a_file_name_or_a_repository(label, tmp_path: Path) -> None:
    path = own(tmp_path, model_card={"source": {"label": label, "format": "nnssl"}})
    export(path, tmp_path / "out", "safetensors")
    shown = {"hf://owner/name@abc": "hf://owner/name@abc", "hf://../../srv/mueller": "mueller", "a/b/": "b"}
    assert (
        f"itself exported from `{shown.get(label, 'not stated')}` (nnssl)"
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize("earlier", ["text", ["list"], {"source": "x", "metrics": [1], "scans": 3}])
def test_an_earlier_card_of_another_form_says_nothing(earlier, tmp_path: Path) -> None:
    export(own(tmp_path, model_card=earlier), tmp_path / "out", "safetensors")
    assert "itself exported" not in (tmp_path / "out" / "README.md").read_text()


def test_no_licence_is_said_and_not_made_up(tmp_path: Path) -> None:
    own(tmp_path)
    assert "--licence" in export(tmp_path, tmp_path / "out", "safetensors")
    assert "license" not in header(tmp_path / "out")
    assert "Of these weights: not stated." in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    path = own(tmp_path, "amaes")
    export(path, tmp_path / "out", "safetensors", name="Heads", data="40 heads | two clinics.")
    card = (tmp_path / "out" / "README.md").read_text()
    weights, _ = under_one_name(read_checkpoint(path).weights)
    assert f"| parameters | {sum(tensor.numel() for tensor in weights.values()):,} (" in card
    for words in (
        "# Heads",
        "40 heads | two clinics.",
        "| voxel spacing [mm] | 5.0, 4.0, 6.0 |",
        "RAS",
        "cannot repeat when it fine-tunes and predicts:** intensities clipped from above at percentile 99",
        "| epochs done | 1 |",
        "| optimiser steps | 250 |",
        "| hours in epochs | 1.0 |",
        "| hardware | not stated |",
        "| validation loss | 0.25 |",
        "| PSNR [dB] | 21.5 |",
        "eprint = {2412.17041}",
        "nnssl-mae adapt THIS_FOLDER",
    ):
        assert words in card


def test_the_recipe_in_the_card_is_the_recipe(tmp_path: Path) -> None:
    own(tmp_path, "s3d")
    export(tmp_path, tmp_path / "out", "nnssl")
    text = re.search(r"```yaml\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert text is not None
    assert parse_recipe(yaml.safe_load(text[1]), "card") == recipe("s3d")


# ---------------------------------------------------------------------- places


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_stays_unless_told_otherwise(form, tmp_path: Path) -> None:
    path = own(tmp_path)
    export(path, tmp_path / "out", form, data="first")
    before = (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="exists; choose another name, or pass --overwrite"):
        export(path, tmp_path / "out", form, data="second")
    assert (tmp_path / "out" / "README.md").read_text() == before
    export(path, tmp_path / "out", form, data="second", overwrite=True)
    assert "second" in (tmp_path / "out" / "README.md").read_text()
    assert left_in(tmp_path) == ["checkpoint_final.pth", "out"]


def test_overwrite_never_deletes_what_is_no_export(tmp_path: Path) -> None:
    path = own(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        export(path, tmp_path / "out", "nnssl", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        export(path, tmp_path / "file", "nnssl", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        export(path, tmp_path / "link", "nnssl")


def test_an_export_is_never_written_over_what_it_is_read_from(tmp_path: Path) -> None:
    own(tmp_path)
    export(tmp_path, tmp_path / "out", "nnssl")
    with pytest.raises(UserError, match="is read from"):
        export(tmp_path / "out", tmp_path / "out", "nnssl", overwrite=True)


def test_a_place_that_cannot_be_written_to_gets_a_sentence(tmp_path: Path) -> None:
    path = own(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        export(path, tmp_path / "file" / "out", "safetensors")
    assert left_in(tmp_path) == ["checkpoint_final.pth", "file"]


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing(form, tmp_path: Path) -> None:
    import resource

    path = own(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            export(path, tmp_path / "out", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_in(tmp_path) == ["checkpoint_final.pth"]


@pytest.mark.parametrize("form", FORMS)
def test_others_may_read_what_was_written(form, tmp_path: Path) -> None:
    path = own(tmp_path)
    before = os.umask(0o022)
    try:
        export(path, tmp_path / "out", form)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o644}


# ---------------------------------------------------------------------- refusals


def test_only_a_fine_tuned_model_becomes_a_zip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave the ending out"):
        export(own(tmp_path), tmp_path / "out.zip", "nnunet")


def test_stock_nnunet_needs_a_whole_u_net(tmp_path: Path) -> None:
    own(tmp_path, "amaes")
    with pytest.raises(UserError, match=r"decoder without skip connections.*`nnssl-mae adapt`"):
        export(tmp_path, tmp_path / "out", "nnunet")


@pytest.mark.parametrize("form", ["nnssl", "nnunet"])
def test_a_network_that_others_do_not_know_is_refused(form, tmp_path: Path) -> None:
    path = own_amaes_unet(tmp_path)
    with pytest.raises(UserError, match=r"max pooling.*--format safetensors"):
        export(path, tmp_path / "out", form)


def test_weights_without_their_preprocessing_are_refused(tmp_path: Path) -> None:
    weights = torch.load(own(tmp_path), weights_only=True)["network_weights"]
    torch.save(weights, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="does not say how its scans were preprocessed"):
        export(tmp_path / "bare.pth", tmp_path / "out", "safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = own(tmp_path)
    content = torch.load(path, weights_only=True)
    content["network_weights"]["encoder.stem.convs.0.conv.weight"][0] = torch.nan
    torch.save(content, path)
    with pytest.raises(UserError, match="nan or infinite"):
        export(path, tmp_path / "out", "safetensors")


def test_a_small_file_with_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    path = own(tmp_path)
    content = torch.load(path, weights_only=True)
    content["network_weights"]["huge"] = torch.zeros(1).expand(100_000, 1_000_000)
    torch.save(content, path)
    with pytest.raises(UserError, match=r"holds huge with more values.*plain tensors"):
        export(path, tmp_path / "out", "safetensors")


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"name": "two\nlines"}, "--name"),
        ({"licence": " "}, "--licence"),
        ({"preview": Path("/no/such.png")}, "--preview"),
    ],
)
def test_impossible_wishes(wish, sentence: str, tmp_path: Path) -> None:
    path = own(tmp_path)
    with pytest.raises(UserError, match=sentence):
        export(path, tmp_path / "out", "safetensors", **wish)


def test_a_preview_that_is_no_picture(tmp_path: Path) -> None:
    path = own(tmp_path)
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(UserError, match="no picture"):
        export(path, tmp_path / "out", "safetensors", preview=tmp_path / "x.png")


def test_the_folder_of_a_pre_training_names_the_folder_to_give(tmp_path: Path) -> None:
    (tmp_path / "fold_all").mkdir()
    own(tmp_path / "fold_all")
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "plans.json").write_text('{"configurations": {"x": {"nnssl_mae": {"kind": "pretrain"}}}}')
    with pytest.raises(UserError, match="fold_all"):
        export(tmp_path, tmp_path / "out", "safetensors")
    export(tmp_path / "fold_all", tmp_path / "out", "safetensors")
    assert (tmp_path / "out" / "model.safetensors").is_file()
