"""Bad input at the command line: a sentence on stderr, exit code 2, nothing half-written."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnssl_mae import __version__, cli
from nnssl_mae.errors import ResumableError, UserError
from tests.catalogue.scan_tables import row, write
from tests.tiny_scans import tiny_scan


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``nnssl-mae`` in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnssl-mae", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def test_version_and_help(command) -> None:
    assert command("--version") == (0, f"{__version__}\n", "")
    code, out, _ = command("--help")
    assert code == 0
    for verb in ("doctor", "scan", "prepare", "pretrain", "adapt", "bench", "demo"):
        assert verb in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "--spacing", "1", "1", "1", "-d", "5"], ["a", "--spacing", "1 1 1", "-d", "5"]),
        (["--spacing", "native", "a"], ["--spacing", "native", "a"]),
        (["--patch", "160", "160", "160", "7"], ["--patch", "160 160 160", "7"]),
        (["--patch", "planner", "--spacing", ".5", "1e0", "2"], ["--patch", "planner", "--spacing", ".5 1e0 2"]),
        (["--spacing"], ["--spacing"]),
        (["--clip-percentiles", "0.5", "99.5", "7"], ["--clip-percentiles", "0.5 99.5", "7"]),
    ],
)
def test_three_numbers_after_an_option_need_no_quotes(arguments: list[str], expected: list[str]) -> None:
    assert cli.join_numbers(arguments) == expected


@pytest.fixture
def bad_scans(tmp_path: Path) -> Path:
    folder = tmp_path / "bad"
    for name in ("empty", "text", "2d", "4d", "good"):
        (folder / name).mkdir(parents=True)
    volume = np.asarray(tiny_scan(0)[0].dataobj)
    (folder / "text" / "x.nii.gz").write_text("text")
    nibabel.save(nibabel.Nifti1Image(volume[0], np.eye(4)), folder / "2d" / "x.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.stack([volume] * 2, -1), np.eye(4)), folder / "4d" / "x.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "good" / "x.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("missing", [], "missing does not exist"),
        ("empty", [], "holds no scan (.nii.gz"),
        ("text", [], "None of the 1 scans can be used"),
        ("2d", [], "is a single slice"),
        ("4d", [], "--split-4d mean, first or all"),
        ("good", ["-d", "0"], "Dataset number 0 is not possible"),
        ("good", ["-n", "a b"], "Dataset name 'a b' is not possible"),
        ("good", ["--recipe", "mea"], "did you mean 'mae'"),
        ("good", ["--spacing", "1", "1"], "--spacing 1 1 is not possible"),
        ("good", ["--spacing", "0", "1", "1"], "must be positive"),
        ("good", ["--patch", "big"], "--patch big is not possible"),
        ("good", [], "covers 48 mm along its shortest edge"),
        (
            "good",
            ["--recipe", "smoke", "--allow", "field_of_view", "--patch", "33", "33", "33"],
            "--set network.patch_size=[32,32,32]",
        ),
        ("good", ["--allow", "truncated"], "no network can be trained with such scans"),
        ("good", ["--allow", "localizer"], "--allow localizer is no check"),
        ("good", ["--shard", "1/4"], "--shard needs a catalogue"),
        ("good", ["--shard", "5/4"], "--shard 5/4 is not possible"),
        ("good", ["--shard", "half"], "--shard half is not possible"),
        ("good", ["--orientation", "LPS"], "use RAS or asis"),
        ("good", ["--crop", "brain"], "data.crop"),
        ("good", ["--clip-percentiles", "a"], "--clip-percentiles a is not possible"),
        ("good", ["--clip-percentiles", "60", "99"], "data.clip_low_percentile"),
        ("good", ["--split-4d", "last"], "--split-4d last is not possible"),
        ("good", ["--exclude-dataset", "77", "--allow", "field_of_view"], "no dataset 77"),
        ("good", ["--batch", "0"], "network.batch_size"),
        ("good", ["--batch", "2", "--patch", "planner"], "--batch cannot be used with a planner patch"),
    ],
)
def test_prepare_refuses(command, nnunet_folders, bad_scans, source, options, sentence) -> None:
    defaults = {"-d": "900", "-n": "Brains", "--recipe": "smoke", "-np": "1"}
    given = [part for key, value in defaults.items() if key not in options for part in (key, value)]
    code, _, err = command("prepare", bad_scans / source, *given, *options)
    assert code == 2
    assert sentence in err
    assert err.startswith("nnssl-mae: ")
    assert "Traceback" not in err
    assert list((nnunet_folders / "preprocessed").iterdir()) == []


def test_prepare_refuses_a_number_in_use_and_unset_folders(command, prepared, bad_scans, monkeypatch) -> None:
    code, _, err = command("prepare", bad_scans / "good", "-d", "900", "-n", "Other", "--recipe", "smoke")
    assert (code, "in use by Dataset900_Brains" in err) == (2, True)
    monkeypatch.delenv("nnUNet_preprocessed")
    code, _, err = command("prepare", bad_scans / "good", "-d", "901", "-n", "Other", "--recipe", "smoke")
    assert (code, "nnUNet_preprocessed is not set" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.pth", "-d", "900"], "nowhere.pth does not exist"),
        (["text.pth", "-d", "900"], "not a checkpoint that can be read safely"),
        (["text.pth", "-d", "900", "--transfer", "half"], "--transfer half is not possible"),
        (["text.pth", "-d", "900", "--epochs", "1"], "needs more than 1 epochs"),
    ],
)
def test_adapt_refuses(command, nnunet_folders, tmp_path, monkeypatch, arguments, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("text", encoding="utf-8")
    code, _, err = command("adapt", *arguments)
    assert (code, sentence in err, "Traceback" in err) == (2, True, False)
    assert list((nnunet_folders / "preprocessed").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-d", "77", "--device", "cpu"], "no dataset 77"),
        (["-d", "900", "--device", "cpu", "-p", "otherPlans"], "no plans 'otherPlans'"),
        (["-d", "900", "--device", "cpu", "-f", "every"], "--fold every is not possible"),
        (["-d", "900", "--device", "tpu"], "--device tpu is not possible"),
    ],
)
def test_pretrain_refuses(command, prepared, arguments, sentence) -> None:
    code, _, err = command("pretrain", *arguments)
    assert (code, sentence in err, "Traceback" in err) == (2, True, False)


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Of two scans with headers only: nothing is read in processes."""
    for name, modality in (("sub-01", "T1w"), ("sub-02", "T2w")):
        path = tmp_path / "tree" / name / "anat" / f"{name}_{modality}.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(tiny_scan(1)[0], path)
    return tmp_path / "catalogue"


def test_scan_makes_a_catalogue_with_rules_and_a_report(command, catalogue: Path) -> None:
    code, out, err = command("scan", catalogue.parent / "tree", "-o", catalogue, "--headers-only", "-np", "1")
    assert (code, err) == (0, "")
    assert "2 of 2 scans accepted, of 2 subjects" in out
    assert f"nnssl-mae prepare {catalogue}" in out
    code, out, _ = command("scan", "include", catalogue, "--where", "modality == 'T1w'")
    assert (code, "1 of 2 scans are accepted" in out) == (0, True)
    assert command("scan", "rules", catalogue, "--remove", "1")[0] == 0
    code, out, _ = command("scan", "report", catalogue)
    assert (code, (catalogue / "scan.html").is_file()) == (0, True)


def test_scan_include_says_that_a_duplicate_comes_back(command, tmp_path: Path) -> None:
    copies = [row("a", modality="T2w", voxel_hash="1"), row("b", voxel_hash="1")]
    folder = write(tmp_path / "catalogue", copies)
    command("scan", "exclude", folder, "--where", "mean > 1e9")  # finds the duplicate
    code, out, _ = command("scan", "include", folder, "--where", "modality == 'T1w'")
    assert (code, "1 comes back" in out, "1 of 2 scans are accepted" in out) == (0, True, True)
    assert "comes back" not in command("scan", "rules", folder)[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scan", "nowhere", "-o", "out"], "nowhere does not exist"),
        (["scan", "report", "nowhere"], "nowhere holds no catalogue"),
        (["scan", "include", "nowhere", "--where", "bytes == 1"], "nowhere holds no catalogue"),
        (["scan", "rules", "nowhere", "--remove", "first"], "--remove first is not possible"),
        (["scan", "tree", "-o", "out", "--max-spacing", "-1"], "--max-spacing -1"),
        (["scan", "tree", "-o", "out", "--subject-regex", "("], "is not a regular expression"),
    ],
)
def test_scan_refuses(command, catalogue, monkeypatch, arguments, sentence) -> None:
    monkeypatch.chdir(catalogue.parent)
    code, _, err = command(*arguments)
    assert (code, sentence in err, "Traceback" in err) == (2, True, False), err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("bad"), 2, "nnssl-mae: bad\n"),
        (ResumableError("full"), 75, "nnssl-mae: full\n"),
        (KeyboardInterrupt(), 130, "nnssl-mae: Interrupted; the same command goes on where this one stopped.\n"),
    ],
)
def test_exit_codes_tell_bad_input_from_what_can_be_tried_again(
    command, catalogue, monkeypatch, error, code, sentence
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("nnssl_mae.catalogue.scan.scan_folders", fail)
    assert command("scan", catalogue.parent, "-o", catalogue) == (code, "", sentence)


def test_prepare_of_a_catalogue(command, catalogue, nnunet_folders) -> None:
    """Good on the whole: rejected and left out by rules is not a failure, and nothing is wrapped in a log."""
    options = ("-d", 900, "-n", "Brains", "--recipe", "smoke", "-np", 1)
    scan = ("scan", catalogue.parent / "tree", "-o", catalogue, "--headers-only", "-np", 1)
    assert command(*scan, "--allow", "field_of_view")[0] == 0
    code, _, err = command("prepare", catalogue, *options, "--subject-regex", "(a)")
    assert (code, "--subject-regex belongs to `nnssl-mae scan`" in err) == (2, True)
    command("scan", "exclude", catalogue, "--where", "modality == 'T2w'")
    code, out, err = command("prepare", f"{catalogue}/", *options, "--strict", "--spacing", 4, 4, 4)
    assert (code, err) == (0, ""), out
    assert any(line.startswith("Network: patch 32x32x32") and "batch" in line for line in out.splitlines())
    assert "Dataset900_Brains holds 1 scans" in out
