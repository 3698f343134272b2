"""What another study, another version of this one, or older data left in ``nnUNet_preprocessed`` does not count."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.study.place import LabelledSet
from nnssl_mae.study.stamps import (
    is_planned,
    is_preprocessed,
    stamp_fingerprint,
    stamp_preprocessed,
    unstamp_fingerprint,
    unstamp_preprocessed,
)
from tests.study.datasets import set_folders, write_labelled

CONFIGURATION = {"spacing": [1, 1, 1], "patch_size": [8, 8, 8], "data_identifier": "S_stock_3d_fullres"}


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelledSet:
    """Planned and preprocessed by somebody."""
    set_folders(tmp_path, monkeypatch)
    raw = write_labelled(tmp_path, 4, "Tiny")
    made = LabelledSet(4, raw.name)
    data = made.preprocessed / "S_stock_3d_fullres"
    data.mkdir(parents=True)
    for n in range(6):
        (data / f"case{n}.b2nd").touch()
        (data / f"case{n}.pkl").touch()
    (made.preprocessed / "dataset.json").write_text((raw / "dataset.json").read_text())
    (made.preprocessed / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1, 1]] * 6}))
    (made.preprocessed / "nnUNetResEncUNetLPlans.json").write_text("{}")
    write_plans(made)
    return made


def write_plans(labelled: LabelledSet, **changes: Any) -> None:
    inherited = {"small": {"inherits_from": "3d_fullres", "batch_size": 1}}
    content = {"configurations": {"3d_fullres": {**CONFIGURATION, **changes}, **inherited}, "transpose_forward": [0]}
    (labelled.preprocessed / "S_stock.json").write_text(json.dumps(content))


def is_there(labelled: LabelledSet, digest: str = "data", configuration: str = "3d_fullres") -> bool:
    return bool(is_preprocessed(labelled, "S_stock", configuration, digest))


def test_plans_of_a_user_stand_until_the_data_change(labelled: LabelledSet) -> None:
    assert is_planned(labelled, "data")
    label = labelled.raw / "labelsTr" / "case0.nii.gz"
    later = (labelled.preprocessed / "dataset_fingerprint.json").stat().st_mtime + 5
    os.utime(label, (later, later))
    assert not is_planned(labelled, "data")


def test_plans_for_another_dataset_json_do_not_count(labelled: LabelledSet) -> None:
    content = json.loads((labelled.raw / "dataset.json").read_text())
    stamp_fingerprint(labelled, "data")
    (labelled.raw / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "CT"}}))
    assert not is_planned(labelled, "data")


def test_plans_of_a_study_are_those_of_the_data_they_were_made_from(labelled: LabelledSet) -> None:
    stamp_fingerprint(labelled, "data")
    assert is_planned(labelled, "data") and not is_planned(labelled, "other data")
    unstamp_fingerprint(labelled)
    stamp_fingerprint(labelled, "other data")
    assert not is_planned(labelled, "data")


def test_cases_without_a_proof_are_made_again(labelled: LabelledSet) -> None:
    assert not is_there(labelled)
    stamp_preprocessed(labelled, "S_stock", "3d_fullres", "data")
    assert is_there(labelled) and is_there(labelled, configuration="small")
    assert not is_there(labelled, digest="other labels")
    write_plans(labelled, patch_size=[16, 16, 16])  # decides nothing about the data
    assert is_there(labelled)
    write_plans(labelled, nnssl_mae={"initialisation": {"sha256": "of other weights"}})  # the arms share the data
    assert is_there(labelled)
    write_plans(labelled, spacing=[2, 2, 2])
    assert not is_there(labelled)


def test_proof_is_taken_back_before_cases_are_made_and_does_not_replace_them(labelled: LabelledSet) -> None:
    stamp_preprocessed(labelled, "S_stock", "3d_fullres", "data")
    (labelled.preprocessed / "S_stock_3d_fullres" / "case0.pkl").unlink()
    assert not is_there(labelled)
    (labelled.preprocessed / "S_stock_3d_fullres" / "case0.pkl").touch()
    unstamp_preprocessed(labelled, "S_stock", "3d_fullres")
    assert not is_there(labelled)


def test_unknown_configuration_is_named(labelled: LabelledSet) -> None:
    with pytest.raises(UserError, match="no configuration 3d_lowres"):
        is_there(labelled, configuration="3d_lowres")
