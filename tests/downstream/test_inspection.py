import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nnssl_mae.checkpoints.describe import Checkpoint
from nnssl_mae.checkpoints.read import read_checkpoint
from nnssl_mae.downstream.inspection import inspect, orientation
from nnssl_mae.downstream.inspection_page import print_json, print_page
from nnssl_mae.downstream.labelled import labelled_dataset
from nnssl_mae.downstream.wish import Wish
from nnssl_mae.errors import UserError
from tests.labelled import write_labelled_with_plans


@pytest.fixture
def labelled(prepared: Path, nnunet_folders: Path) -> Path:
    """A labelled dataset of two channels with stock plans."""
    return write_labelled_with_plans(nnunet_folders, prepared)


@pytest.fixture
def checkpoint(pretrained: Path) -> Checkpoint:
    return read_checkpoint(pretrained)


def page(found, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    print_page(found, console)
    return console.export_text()


def test_the_page_of_a_checkpoint_alone_says_what_it_is(checkpoint: Checkpoint) -> None:
    shown = page(inspect(checkpoint, None, Wish(part="encoder")))
    for words in (
        "ResidualEncoderUNet, 3 stages of 4-8-16 features", "1 channel, patch 32x32x32", "ZScoreNormalization",
        "turned to RAS", "3 epochs, 9 steps", checkpoint.origin.sha256, "not stated",
    ):  # fmt: skip
        assert words in shown


def test_with_a_dataset_every_tensor_is_accounted_for(checkpoint: Checkpoint, labelled: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in labelled.rglob("*"))
    found = inspect(checkpoint, labelled_dataset(4, plan_if_missing=False), Wish(part="encoder"))
    assert found.planned is not None and found.planned.report is not None
    report, shown = found.planned.report, page(found)
    encoder = [fate for fate in report.fates if fate.name.startswith("encoder.")]
    assert sum(fate.weights for fate in encoder) == found.encoder_weights + 4 * 27  # the stem takes a second channel
    assert len(report.adapted) == 1
    total = f"{len(report.loaded)}         1       {len(report.random)}"
    assert total in shown and "only the encoder is transferred" in shown
    assert [mode.mode for mode in found.modes] == ["like-pretrained", "dataset", "native"]
    assert "like-pretrained *" in shown and "nnssl-mae adapt" in shown
    assert sorted((path, path.stat().st_mtime_ns) for path in labelled.rglob("*")) == before


def test_json_holds_the_same(checkpoint: Checkpoint, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(checkpoint, labelled_dataset(4, plan_if_missing=False), Wish(part="encoder+decoder"))
    print_json(found)
    content = json.loads(capsys.readouterr().out)
    assert content["origin"]["sha256"] == checkpoint.origin.sha256
    assert content["network"]["weights"] == found.weights
    counts = content["dataset"]["transfer"]["counts"]
    assert sum(counts.values()) == len(content["dataset"]["transfer"]["tensors"])
    assert counts["adapted"] == 1
    assert content["dataset"]["configuration"]["patch_size"] == [32, 32, 32]


def test_a_mode_that_is_refused_does_not_hide_the_others(checkpoint: Checkpoint, labelled: Path) -> None:
    bare = replace(checkpoint, plans={}, data={})
    found = inspect(bare, labelled_dataset(4, plan_if_missing=False), Wish(part="encoder", mode="dataset"))
    refused = {mode.mode: mode.refused for mode in found.modes}
    assert refused["dataset"] == "" and "use --mode dataset" in refused["native"]
    assert "Not possible with --mode like-pretrained" in page(found)
    assert orientation(bare) == "not known"
    with pytest.raises(UserError, match="use --mode dataset"):
        inspect(bare, labelled_dataset(4, plan_if_missing=False), Wish(part="encoder"))


def test_warnings_of_the_plan_are_on_the_page(checkpoint: Checkpoint, labelled: Path) -> None:
    coarse = replace(checkpoint, data={**checkpoint.data, "spacing": [9.0, 9.0, 9.0]}, notes=("odd copy.",))
    shown = page(inspect(coarse, labelled_dataset(4, plan_if_missing=False), Wish(part="encoder")))
    assert "Warning: The dataset's voxels" in shown and "--mode dataset" in shown
    assert shown.count("odd copy.") == 1


def test_names_that_look_like_markup_are_shown_as_they_are(checkpoint: Checkpoint) -> None:
    odd = replace(checkpoint, origin=replace(checkpoint.origin, label="[bold]x[/bold].pth", method="[red]m"))
    shown = page(inspect(odd, None, Wish(part="encoder")))
    assert "[bold]x[/bold].pth" in shown and "[red]m" in shown
