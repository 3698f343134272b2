"""Voxels are those of nnU-Net's own readers, in every format, and damaged files are sentences."""

import gzip
import locale
import os
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl_mae.catalogue.read import ScanProblem, read_header, read_voxels
from tests.catalogue.scan_files import brain, oblique, scan, write_dicom, write_itk, write_nifti

TURNS = ("RAS", "LPS", "LPI", "PSR", "AIL")


def stock(reader, path: Path) -> tuple[np.ndarray, list[float]]:
    voxels, properties = reader().read_images((str(path),))
    return voxels, list(properties["spacing"])


def problem(path: Path, **more: str) -> tuple[str, str]:
    with pytest.raises(ScanProblem) as caught:
        read_voxels(scan(path, **more), "RAS")
    return caught.value.check, caught.value.detail


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [
        ("int16", None, None),
        ("int16", 0.37, -12.5),
        ("int16", 1.0, 5.0),
        ("uint8", 2.0, 0.0),
        ("uint8", None, None),
        ("uint16", 0.001, 0.0),
        ("int32", None, None),
        ("int64", None, None),
        ("float32", None, None),
        ("float32", 1.7, 0.1),
        ("float64", None, None),
        (">i2", 0.37, -12.5),
    ],
)
def test_nifti_equals_both_of_nnunets_readers_bit_for_bit(tmp_path, turned, dtype, slope, inter) -> None:
    data = brain().astype(np.float64) * (1e5 if dtype in ("int32", "int64") else 1) + (0.123 if "float" in dtype else 0)
    values = (data % 251 if dtype == "uint8" else data).astype(dtype)
    image = nibabel.Nifti1Image(values, oblique(turned=turned), dtype=dtype)
    image.header.set_data_dtype(dtype)
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / "a.nii.gz"
    image.to_filename(path)
    for orientation, reader in (("RAS", NibabelIOWithReorient), ("as_stored", SimpleITKIO)):
        ours, spacing = read_voxels(scan(path), orientation)
        theirs, their_spacing = stock(reader, path)
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        assert np.array_equal(ours, theirs)
        assert list(spacing) == their_spacing


def test_spacing_of_the_header_wins_where_nothing_is_turned_as_in_nnunet(tmp_path) -> None:
    image = nibabel.Nifti1Image(brain(), oblique(turned="RAS"))
    image.header["pixdim"][1:4] = (1.5, 2.5, 3.5)
    image.to_filename(tmp_path / "a.nii")
    assert list(read_voxels(scan(tmp_path / "a.nii"), "RAS")[1]) == stock(NibabelIOWithReorient, tmp_path / "a.nii")[1]


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".hdr"])
def test_every_format_holds_the_same_scan(tmp_path, turned, ending) -> None:
    data, affine = brain(), oblique(turned=turned)
    there = read_voxels(scan(write_nifti(tmp_path / "n.nii.gz", data, affine)), "RAS")
    path = tmp_path / f"a{ending}"
    if ending == ".hdr":
        nibabel.save(nibabel.Nifti1Pair(data, affine), path)
    else:
        write_itk(path, data, affine)
    voxels, spacing = read_voxels(scan(path), "RAS")
    assert np.array_equal(voxels, there[0]) and np.allclose(spacing, there[1], rtol=1e-5)
    stored, stored_spacing = read_voxels(scan(path), "as_stored")
    assert np.array_equal(stored[0], data.transpose(2, 1, 0)) and np.allclose(stored_spacing, (4, 3, 3), rtol=1e-5)
    header = read_header(scan(path))
    assert header.orientation == turned
    assert np.allclose(header.affine, affine, atol=1e-3)
    assert header.shape == voxels.shape[:0:-1] and np.allclose(header.spacing, spacing[::-1])
    assert header.dtype == "int16" and header.volumes == 1


def test_reading_dicom_leaves_the_language_settings_of_the_process_alone(tmp_path) -> None:
    write_dicom(tmp_path / "s", brain(), series="1.2.3")
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    read_voxels(scan(tmp_path / "s", series="1.2.3"), "RAS")
    assert locale.setlocale(locale.LC_CTYPE) == "C.UTF-8"


def test_dicom_series_equals_the_same_voxels_as_nifti(tmp_path) -> None:
    data = brain()
    write_dicom(tmp_path / "s", data, series="1.2.3", patient="A")
    write_dicom(tmp_path / "s", brain(seed=5), series="1.2.4", patient="A", prefix="other")
    path = write_nifti(tmp_path / "n.nii", data, np.diag([-3.0, -3.0, 4.0, 1.0]))
    voxels, spacing = read_voxels(scan(tmp_path / "s", series="1.2.3"), "RAS")
    assert np.array_equal(voxels, read_voxels(scan(path), "RAS")[0]) and spacing == (4.0, 3.0, 3.0)
    header = read_header(scan(tmp_path / "s", series="1.2.3"))
    assert (header.orientation, header.modality, header.description) == ("LPS", "MR", "t1_mprage")
    assert header.patient.startswith("patient-") and "A" not in header.patient.removeprefix("patient-")
    assert header.patient == read_header(scan(tmp_path / "s", series="1.2.4")).patient
    assert len(header.files) == data.shape[2]


def test_dicom_series_with_a_missing_slice_or_a_cut_one_is_said(tmp_path) -> None:
    folder = write_dicom(tmp_path / "s", brain(), series="1.2.3")
    (folder / "IM0007.dcm").unlink()
    check, detail = problem(folder, series="1.2.3")
    assert check == "truncated" and "4 to 8 mm" in detail
    folder = write_dicom(tmp_path / "t", brain(), series="1.2.3")
    whole = (folder / "IM0007.dcm").read_bytes()
    (folder / "IM0007.dcm").write_bytes(whole[:-400])
    assert problem(folder, series="1.2.3")[0] == "truncated"
    assert problem(folder, series="9.9")[0] == "unreadable"


def test_several_volumes_at_each_place_of_a_dicom_series_are_frames(tmp_path) -> None:
    one, two = brain(seed=1), brain(seed=2)
    write_dicom(tmp_path, one, series="1.2")
    write_dicom(tmp_path, two, series="1.2", first=len(one[0, 0]))
    assert read_header(scan(tmp_path, series="1.2")).volumes == 2
    for frame, data in (("0", one), ("1", two), ("mean", (one.astype(float) + two) / 2)):
        voxels, _ = read_voxels(scan(tmp_path, series="1.2", frame=frame), "as_stored")
        assert np.allclose(voxels[0], data.transpose(2, 1, 0))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("orientation", ["RAS", "as_stored"])
def test_frames_of_4d_images(tmp_path, ending, orientation) -> None:
    data = np.stack([brain(seed=n) for n in range(3)], axis=-1)
    path = tmp_path / f"a{ending}"
    if ending.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(data, np.diag([-3.0, 3.0, 4.0, 1.0])), path)
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(3, 2, 1, 0)), isVector=False)
        image.SetSpacing((3, 3, 4, 1))
        sitk.WriteImage(image, str(path))
    assert read_header(scan(path)).volumes == 3
    check, detail = problem(path)
    assert check == "not_3d" and "--split-4d" in detail
    flip = {".nii.gz": np.s_[::-1], ".nii": np.s_[::-1]}.get(ending, np.s_[::-1, ::-1])
    for frame, volume in (("0", data[..., 0]), ("2", data[..., 2]), ("mean", data.mean(axis=-1))):
        voxels, spacing = read_voxels(scan(path, frame=frame), orientation)
        wanted = volume[flip] if orientation == "RAS" else volume
        assert np.allclose(voxels[0], wanted.transpose(2, 1, 0), atol=1e-3) and np.allclose(spacing, (4, 3, 3))
    assert problem(path, frame="3")[0] == "unreadable"


def test_colour_pictures_and_flat_ones(tmp_path) -> None:
    rgb = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "a.nii")
    assert problem(tmp_path / "a.nii")[0] == "colour"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8, 3), np.uint8), isVector=True), str(tmp_path / "a.mha"))
    assert problem(tmp_path / "a.mha")[0] == "colour"
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8), np.int16), np.eye(4)), tmp_path / "flat.nii")
    assert read_header(scan(tmp_path / "flat.nii")).stored_shape == (8, 8, 1)


def test_a_fourth_axis_of_one_volume_means_nothing(tmp_path) -> None:
    nibabel.save(nibabel.Nifti1Image(brain()[..., None], np.eye(4)), tmp_path / "a.nii.gz")
    assert read_voxels(scan(tmp_path / "a.nii.gz"), "RAS")[0].shape == (1, 18, 24, 20)


def test_names_that_lie_about_compression_do_no_harm(tmp_path) -> None:
    data = write_nifti(tmp_path / "a.nii", brain(), np.eye(4)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(data)
    (tmp_path / "c.nii").write_bytes(gzip.compress(data))
    for name in ("b.nii.gz", "c.nii"):
        assert np.array_equal(read_voxels(scan(tmp_path / name), "RAS")[0][0], brain().transpose(2, 1, 0))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", ".mhd"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95])
def test_files_that_end_too_early(tmp_path, ending, kept, capfd) -> None:
    path = write_itk(tmp_path / f"a{ending}", brain(), oblique())
    voxels = next((p for p in tmp_path.iterdir() if p.suffix in (".raw", ".zraw", ".gz") and p != path), path)
    whole = voxels.read_bytes()
    voxels.write_bytes(whole[: int(kept * len(whole))])
    check, detail = problem(path)
    assert check in ("truncated", "unreadable")
    if kept == 0.95:
        assert check == "truncated"
    assert "\n" not in detail and "Traceback" not in detail
    assert capfd.readouterr() == ("", "")


def test_damaged_compressed_data_are_noticed(tmp_path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", brain(), np.eye(4))
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 0xFF  # the checksum
    path.write_bytes(whole)
    assert problem(path)[0] == "truncated"
    path.write_bytes(gzip.compress(gzip.decompress(write_nifti(path, brain(), np.eye(4)).read_bytes())) + b"more")
    assert read_voxels(scan(path), "RAS")[0].shape == (1, 18, 24, 20)  # what follows is no damage


@pytest.mark.parametrize("size", [30_000, 2_000])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_header_that_claims_far_too_much_takes_no_memory(tmp_path, size, ending) -> None:
    path = write_itk(tmp_path / f"a{ending}", brain(), np.eye(4))
    if ending.startswith(".nii"):
        data = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
        data[42:48] = struct.pack("<3h", size, size, size)
        path.write_bytes(gzip.compress(bytes(data)) if ending == ".nii.gz" else data)
    else:
        old, new = (
            ("sizes: 20 24 18", f"sizes: {size} {size} {size}")
            if ending == ".nrrd"
            else ("DimSize = 20 24 18", f"DimSize = {size} {size} {size}")
        )
        whole = path.read_bytes()
        assert old.encode() in whole
        path.write_bytes(whole.replace(old.encode(), new.encode()))
    assert problem(path)[0] in ("unreadable", "truncated")


def test_impossible_geometry(tmp_path) -> None:
    for name, edges in (("zero", (0, 1, 1)), ("nan", (float("nan"), 1, 1)), ("inf", (1, float("inf"), 1))):
        image = nibabel.Nifti1Image(brain(), np.eye(4))
        image.to_filename(tmp_path / f"{name}.nii")
        data = bytearray((tmp_path / f"{name}.nii").read_bytes())
        data[80:92] = struct.pack("<3f", *edges)
        (tmp_path / f"{name}.nii").write_bytes(data)
        assert problem(tmp_path / f"{name}.nii")[0] == "spacing"
    image = nibabel.Nifti1Image(brain(), None)
    image.header["sform_code"] = 1
    image.to_filename(tmp_path / "plane.nii")
    data = bytearray((tmp_path / "plane.nii").read_bytes())
    data[280:328] = bytes(48)
    data[254:256] = struct.pack("<h", 1)
    (tmp_path / "plane.nii").write_bytes(data)
    assert problem(tmp_path / "plane.nii")[0] == "spacing"


def test_what_is_no_regular_file_is_not_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    assert problem(tmp_path / "a.nii.gz")[0] == "unreadable"
    (tmp_path / "b.nii").symlink_to("/dev/zero")
    assert problem(tmp_path / "b.nii")[0] == "unreadable"
    (tmp_path / "c.nii").symlink_to("nowhere")
    assert "link to a file that is not there" in problem(tmp_path / "c.nii")[1]
    (tmp_path / "d.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\nendian: little\ndata file: /dev/zero\n"
    )
    assert "regular file" in problem(tmp_path / "d.nhdr")[1]
    os.mkfifo(tmp_path / "pipe.raw")
    (tmp_path / "e.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = pipe.raw\n"
    )
    assert "regular file" in problem(tmp_path / "e.mhd")[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_is_said(tmp_path) -> None:
    path = write_nifti(tmp_path / "a.nii", brain(), np.eye(4))
    path.chmod(0)
    assert "permission" in problem(path)[1]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.nhdr", "a.mhd", "a.hdr", "a.dcm"])
@pytest.mark.parametrize("content", [b"", b"x", b"\x1f\x8b", b"NRRD0005\n", bytes(5000), b"\x5c\x01\0\0" + bytes(600)])
def test_files_of_something_else(tmp_path, name, content, capfd) -> None:
    (tmp_path / name).write_bytes(content)
    assert problem(tmp_path / name)[0] in ("unreadable", "truncated")
    assert capfd.readouterr() == ("", "")


def test_analyze_files_are_told_apart(tmp_path) -> None:
    nibabel.save(nibabel.AnalyzeImage(brain(), np.eye(4)), tmp_path / "a.hdr")
    assert "left from right" in problem(tmp_path / "a.hdr")[1]


def dicom_problem(folder: Path) -> tuple[str, str]:
    with pytest.raises(ScanProblem) as caught:
        read_header(scan(folder, series="1.2"))
    return caught.value.check, caught.value.detail


def test_copies_of_slices_are_no_second_volume(tmp_path) -> None:
    write_dicom(tmp_path, brain(), series="1.2")
    for path in sorted(tmp_path.iterdir()):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    header = read_header(scan(tmp_path, series="1.2"))
    assert header.volumes == 1 and header.shape == (20, 24, 18)


def test_a_tilted_gantry_and_uneven_slices_are_told(tmp_path) -> None:
    write_dicom(tmp_path / "tilted", brain(), series="1.2", position=lambda z: (0, z, 4 * z))
    assert dicom_problem(tmp_path / "tilted")[0] == "spacing" and "gantry" in dicom_problem(tmp_path / "tilted")[1]
    write_dicom(
        tmp_path / "uneven", brain(), series="1.2", position=lambda z: (0, 0, 3 * z if z < 9 else 27 + 4 * (z - 9))
    )
    assert dicom_problem(tmp_path / "uneven")[0] == "truncated"
    write_dicom(tmp_path / "digits", brain(), series="1.2", position=lambda z: (0, 0, round(4.0004 * z, 2)))
    assert read_header(scan(tmp_path / "digits", series="1.2")).spacing[2] == pytest.approx(4, abs=0.01)


def test_slices_that_do_not_say_how_they_lie(tmp_path) -> None:
    write_dicom(tmp_path, brain(), series="1.2")
    for path in tmp_path.iterdir():  # their direction gets a tag that nobody knows
        path.write_bytes(path.read_bytes().replace(b"\x20\x00\x37\x00", b"\x20\x00\x38\x00"))
    check, detail = dicom_problem(tmp_path)
    assert check == "unreadable" and "left and right" in detail


def test_frames_that_are_no_stack_in_order_are_told(tmp_path) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(brain().transpose(2, 1, 0)))
    image.SetSpacing((3, 3, 4))
    image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.4.1")  # enhanced MR: all slices in one file
    image.SetMetaData("0020|000e", "1.2")
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(image)
    assert read_header(scan(tmp_path, series="1.2")).spacing == (3, 3, 4)
    content = (tmp_path / "a.dcm").read_bytes()
    assert content.count(b"0\\0\\8 ") == 1
    (tmp_path / "a.dcm").unlink()
    (tmp_path / "b.dcm").write_bytes(content.replace(b"0\\0\\8 ", b"0\\0\\4 "))  # a place that occurs twice
    check, detail = dicom_problem(tmp_path)
    assert check == "not_3d" and "dcm2niix" in detail
