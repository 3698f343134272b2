import os

import pytest

from nnssl_mae.errors import UserError
from nnssl_mae.folders import dataset_name, environment, find_dataset, nnunet_folder


def test_folders_are_made_and_must_be_writable(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "new"))
    assert nnunet_folder("nnUNet_preprocessed").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be used"):
        nnunet_folder("nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="cannot be written to"):
        nnunet_folder("nnUNet_preprocessed")
    assert nnunet_folder("nnUNet_raw") == tmp_path
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(UserError, match="nnUNet_raw is not set"):
        nnunet_folder("nnUNet_raw")


@pytest.mark.parametrize(("number", "name"), [(0, "A"), (1000, "A"), (1, ""), (1, "a/b"), (1, "a__b"), (1, "../x")])
def test_impossible_dataset_names(number: int, name: str) -> None:
    with pytest.raises(UserError, match="not possible"):
        dataset_name(number, name)


def test_finding_a_dataset_by_number(nnunet_folders) -> None:
    (nnunet_folders / "raw" / "Dataset004_A").mkdir()
    (nnunet_folders / "results" / "Dataset004_A").mkdir()
    assert find_dataset(4) == "Dataset004_A"
    (nnunet_folders / "preprocessed" / "Dataset004_B").mkdir()
    with pytest.raises(UserError, match="several datasets"):
        find_dataset(4)
    with pytest.raises(UserError, match="no dataset 40"):
        find_dataset(40)


def test_environment_is_restored(monkeypatch) -> None:
    monkeypatch.setenv("A_TEST", "before")
    monkeypatch.delenv("B_TEST", raising=False)
    with pytest.raises(RuntimeError), environment(A_TEST="x", B_TEST="y"):
        assert (os.environ["A_TEST"], os.environ["B_TEST"]) == ("x", "y")
        raise RuntimeError
    assert os.environ["A_TEST"] == "before"
    assert "B_TEST" not in os.environ
