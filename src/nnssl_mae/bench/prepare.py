"""Preprocessing: what `nnssl-mae prepare` does for each scan beside what stock nnU-Net does, on one core."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from rich.console import Console
from scipy import ndimage

from nnssl_mae.bench.measuring import Timing, alternately, environment, one_core, print_table, seconds
from nnssl_mae.catalogue.find import Scan
from nnssl_mae.catalogue.read import ScanProblem, read_voxels
from nnssl_mae.errors import UserError
from nnssl_mae.plans import CONFIGURATION
from nnssl_mae.scans.foreground import encode_occupancy, foreground_mask
from nnssl_mae.scans.one_case import Target, Task, prepare_case
from nnssl_mae.scans.planning import dataset_json
from nnssl_mae.scans.preprocess import BeyondStock, nonzero_box, preprocess
from nnssl_mae.scans.records import Failed
from nnssl_mae.scans.resample import resample
from nnssl_mae.scans.storage import ENDING, as_stored, open_volume, stored_percentiles, write_volume

_SPACING = (1.0, 1.0, 1.0)
_PATCH = (160, 160, 160)
_BRIGHTNESS, _NOISE = 900.0, 18.0  # of white matter and standard deviation, as in a clinical T1 of 12 bit
_WHAT_IS_TIMED = (
    "Timed from the file to the stored volume, both sides in turn in this process on one core. Stock: "
    "DefaultPreprocessor.run_case_save, which resamples and stores a dummy label too. Ours: what every worker of "
    "`nnssl-mae prepare` does for a scan, including percentiles and foreground for the case table. Both read the same "
    "file from the same disk cache. CPU speed is the ratio of processor seconds. Largest differences are to stock's "
    "values, before and after rounding to 16 bit."
)
_WHAT_STEPS_ARE = "Steps on their own, first volume; a dash is work that one side does not do."

Shape = tuple[int, int, int]
Step = tuple[str, Callable[[], object] | None, Callable[[], object] | None]


@dataclass(frozen=True)
class Comparison:
    """One volume, prepared by stock nnU-Net and by us."""

    name: str
    stock: Timing
    ours: Timing
    stock_bytes: int
    our_bytes: int
    before_cast: float
    """Largest absolute difference, normalised units."""
    after_cast: float

    @property
    def row(self) -> tuple[str, ...]:
        """For the table."""
        return (
            self.name,
            f"{self.stock.per_hour:,.0f}",
            f"{self.ours.per_hour:,.0f}",
            f"{self.stock.median / self.ours.median:.1f}x",
            f"{self.stock.cpu_median / self.ours.cpu_median:.1f}x",
            f"{self.stock_bytes / 1e6:.1f}",
            f"{self.our_bytes / 1e6:.1f}",
            f"{self.our_bytes / self.stock_bytes:.2f}x",
            f"{self.before_cast:.1e}",
            f"{self.after_cast:.1e}",
        )


_COLUMNS = (
    "volume",
    "stock/h",
    "ours/h",
    "speed",
    "CPU speed",
    "stock MB",
    "ours MB",
    "size",
    "difference",
    "in 16 bit",
)


def bench_prepare(console: Console, scan: Path | None = None, repeats: int = 3, folder: Path | None = None) -> None:
    """Prints volumes an hour and core, bytes, differences and the time of each step.

    Args:
        console: to print on.
        scan: a NIfTI file; without one, brains are made of the ICBM template inside nilearn.
        repeats: how often each side is timed.
        folder: for the volumes; a temporary one if it is left out.

    Raises:
        UserError: the scan cannot be used, or there is none and nilearn is not installed.
    """
    with _working_in(folder) as place:
        scans = template_scans(place) if scan is None else {scan.name: _usable(scan)}
        with one_core():
            found = [compare(name, path, repeats, place) for name, path in scans.items()]
            steps = [
                (name, *(seconds(timing.median) if timing else "-" for timing in both))
                for name, both in time_steps(next(iter(scans.values())), repeats, place).items()
            ]
    console.print(environment(), markup=False, highlight=False, soft_wrap=True)
    # A column a volume: the other way round is too wide for a terminal.
    head, *lines = zip(_COLUMNS, *(one.row for one in found), strict=True)
    print_table(console, "Volumes an hour and core", head, lines, _WHAT_IS_TIMED)
    print_table(console, "One volume", ("step", "stock", "ours"), steps, _WHAT_STEPS_ARE)


@contextlib.contextmanager
def _working_in(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _usable(scan: Path) -> Path:
    if not scan.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{scan} is no NIfTI file (.nii, .nii.gz), and stock nnU-Net is to read it too; convert it")
    if not scan.is_file():
        raise UserError(f"{scan} does not exist; give a NIfTI file, or none for brains made of a template")
    return scan


def template_scans(folder: Path, scale: float = 1.0) -> dict[str, Path]:
    """Writes whole numbers of 16 bit with the anatomy of the ICBM template, and names them.

    Args:
        folder: for the files.
        scale: of the number of voxels along each axis; 1 gives 228 x 272 x 152.

    Raises:
        UserError: nilearn is not installed.
    """
    kinds: dict[str, tuple[Shape, Shape, bool]] = {
        "0.8 x 0.8 x 1.2 mm, noise in the air": ((228, 272, 152), (8, 8, 12), True),
        "0.8 x 0.8 x 1.2 mm, zero around the brain": ((228, 272, 152), (8, 8, 12), False),
        "0.8 x 0.8 x 5 mm (thick slices)": ((228, 272, 36), (8, 8, 50), True),
    }
    brain = _template()
    written = {}
    for number, (name, (shape, spacing, air)) in enumerate(kinds.items()):
        voxels = _scanned(brain, [max(8, round(scale * size)) for size in shape], air)
        affine = np.diag([*(edge / 10 / scale for edge in spacing), 1.0])
        written[name] = folder / f"template{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, affine), written[name])
    return written


def _template() -> NDArray[np.float32]:
    """(X, Y, Z), 0 outside the brain, white matter about 1."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise UserError(
            'The brain template is inside nilearn: run pip install "nnssl_mae[demo]", or give a NIfTI file of your own'
        ) from error
    data = np.asarray(load_mni152_template(resolution=1).dataobj, dtype=np.float32)
    return data / np.percentile(data, 99)


def _scanned(brain: NDArray[np.float32], shape: Sequence[int], air: bool) -> NDArray[np.int16]:
    """As a scanner would: the magnitude of a signal with noise in two channels."""
    signal = _BRIGHTNESS * ndimage.zoom(brain, np.divide(shape, brain.shape), order=1)
    noise = np.random.default_rng(0).normal(0, _NOISE, (2, *signal.shape)).astype(np.float32)
    magnitude = np.hypot(signal + noise[0], noise[1])
    return np.rint(magnitude if air else np.where(signal > 0.05 * _BRIGHTNESS, magnitude, 0)).astype(np.int16)


def compare(name: str, path: Path, repeats: int, folder: Path) -> Comparison:
    """Prepares one file in both ways, in turn.

    Args:
        name: for the table.
        path: a NIfTI file.
        repeats: timed runs of each side, after one that is not timed.
        folder: for the volumes.

    Raises:
        UserError: the scan cannot be prepared.
    """
    plans = _plans()
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    stem, case = folder / "stock", Scan(path, "ours", "ours")
    task, target = Task(case, key="", cost=0.0), Target(volumes=folder, unfinished=folder)

    def stock() -> None:
        for written in _stock_files(stem)[:2]:
            written.unlink(missing_ok=True)  # blosc2 writes over nothing
        DefaultPreprocessor(verbose=False).run_case_save(
            str(stem), [str(path)], None, manager, configuration, dataset_json(1)
        )

    def ours() -> None:
        record = prepare_case(task, plans, BeyondStock(), target)
        if isinstance(record, Failed):
            raise UserError(f"{path} {record.detail}; give another scan")

    ours()  # before stock, which says less about a scan that cannot be used
    timings = alternately({"stock": stock, "ours": ours}, repeats)
    expected = blosc2.open(str(_stock_files(stem)[0]), mode="r")[:]
    stored = open_volume(folder / f"ours{ENDING}")[:].astype(np.float32)
    return Comparison(
        name,
        timings["stock"],
        timings["ours"],
        sum(file.stat().st_size for file in _stock_files(stem)),
        (folder / f"ours{ENDING}").stat().st_size,
        _largest_difference(preprocess(case, manager, configuration).volume, expected),
        _largest_difference(stored, expected),
    )


def _stock_files(stem: Path) -> list[Path]:
    """Image, label and properties, as nnU-Net names them."""
    return [stem.with_name(f"{stem.name}{ending}") for ending in (".b2nd", "_seg.b2nd", ".pkl")]


def _largest_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max())


def time_steps(path: Path, repeats: int, folder: Path) -> dict[str, tuple[Timing | None, Timing | None]]:
    """Seconds of each step on its own, of stock and of ours; None where a side does not do it.

    Raises:
        UserError: the scan cannot be read.
    """
    steps = _steps(path, folder)
    works = {f"{side} {name}": work for name, *sides in steps for side, work in zip("so", sides, strict=True) if work}
    timings = alternately(works, repeats)
    return {name: (timings.get(f"s {name}"), timings.get(f"o {name}")) for name, *_ in steps}


def _steps(path: Path, folder: Path) -> list[Step]:
    manager = PlansManager(_plans())
    configuration = manager.get_configuration(CONFIGURATION)
    stock = DefaultPreprocessor(verbose=False)
    scan, reader = Scan(path, "step", "step"), manager.image_reader_writer_class()
    try:
        voxels, spacing = read_voxels(scan, "RAS")
    except ScanProblem as problem:
        raise UserError(f"{path} {problem}; give another scan") from problem
    cropped, label, _ = crop_to_nonzero(voxels)
    grids = (compute_new_shape(cropped.shape[1:], spacing, _SPACING), spacing, _SPACING)
    normalise = _normalising(stock, cropped, label, configuration)
    normalise()
    volume = resample(configuration.resampling_fn_data, cropped, *grids)
    new_label = configuration.resampling_fn_seg(label, *grids).astype(np.int16)
    stored = as_stored(volume)

    def save() -> None:
        for written in _stock_files(folder / "step")[:2]:
            written.unlink(missing_ok=True)
        nnUNetDatasetBlosc2.save_case(volume, new_label, {}, str(folder / "step"), *_chunks(volume, new_label))

    def describe() -> None:
        stored_percentiles(stored, (0.5, 99.5))
        encode_occupancy(foreground_mask(stored[0].astype(np.float32)))

    return [
        ("read", lambda: reader.read_images([str(path)]), lambda: read_voxels(scan, "RAS")),
        ("find the box to keep", lambda: crop_to_nonzero(voxels), lambda: nonzero_box(voxels[0])),
        ("normalise", normalise, normalise),
        (
            "resample",
            lambda: configuration.resampling_fn_data(cropped, *grids),
            lambda: resample(configuration.resampling_fn_data, cropped, *grids),
        ),
        ("resample a label", lambda: configuration.resampling_fn_seg(label, *grids), None),
        ("write", save, lambda: write_volume(folder / f"step{ENDING}", as_stored(volume), _PATCH)),
        ("percentiles and foreground", None, describe),
    ]


def _normalising(
    stock: DefaultPreprocessor, voxels: NDArray[np.float32], label: NDArray[np.int8], configuration: Any
) -> Callable[[], object]:
    """Again and again in place: how long it takes does not depend on the values."""
    return lambda: stock._normalize(
        voxels, label, configuration, _plans()["foreground_intensity_properties_per_channel"]
    )


def _chunks(volume: NDArray[Any], label: NDArray[Any]) -> tuple[Any, ...]:
    """Chunks and blocks of image and label, as nnU-Net's preprocessor chooses them."""
    blocks, chunks = comp_blosc2_params(volume.shape, _PATCH, volume.itemsize)
    label_blocks, label_chunks = comp_blosc2_params(label.shape, _PATCH, label.itemsize)
    return chunks, blocks, label_chunks, label_blocks


def _plans() -> dict[str, Any]:
    """What the recipe ``mae`` gives, as far as preprocessing asks: RAS, z-score, 1 mm, nnU-Net's default resampling."""
    splines = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": list(_SPACING),
        "patch_size": list(_PATCH),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**splines, "is_seg": False, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**splines, "is_seg": True, "order": 1},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    return {
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {CONFIGURATION: configuration},
    }
