from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_mae.errors import UserError
from nnssl_mae.masking import hidden_voxels
from nnssl_mae.objectives import reconstruction_loss, reconstruction_metrics
from nnssl_mae.patches.dataset import DamagedCase, is_finite, open_case, open_exclusion
from nnssl_mae.patches.faults import DamagedCases
from nnssl_mae.patches.index import CaseIndex
from nnssl_mae.patches.loader import Batch, OnePass, PatchSettings, TrainingBatches, ValidationBatches, training_stream
from nnssl_mae.recipes.intensity import AdditiveNoise, IntensityRecipe
from nnssl_mae.recipes.pretraining import AugmentationRecipe, LossRecipe, MaskingRecipe
from nnssl_mae.scans.storage import exclusion_path, write_exclusion, write_volume
from tests.patches.stored import PATCH, store

SETTINGS = PatchSettings(PATCH, (4, 4, 4), MaskingRecipe(block_size=8), respect_exclusion=True, seed=7)
STILL = AugmentationRecipe(rotation_probability=0, scale_probability=0, mirror=False)
EDGE = 40


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def overwrite(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def damage_inside(path: Path) -> None:
    """Leaves header and trailer of the file as they are."""
    content = bytearray(path.read_bytes())
    content[500:-500] = np.random.default_rng(0).bytes(len(content) - 1000)
    path.write_bytes(content)


def reshape(path: Path) -> None:
    write_volume(path, np.ones((1, EDGE, EDGE, EDGE + 1), np.float32), PATCH)


def make_nan(path: Path) -> None:
    write_volume(path, np.full((1, EDGE, EDGE, EDGE), np.nan, np.float16), PATCH)


FAULTS = {
    "vanished": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncate,
    "garbage": overwrite,
    "damaged inside": damage_inside,
    "another shape": reshape,
    "not a number": make_nan,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def cases(tmp_path: Path) -> CaseIndex:
    """Eight volumes of noise; the mean of each is about its number + 1."""
    rng = np.random.default_rng(0)
    return store(tmp_path / "volumes", [n + 1 + rng.normal(0, 0.1, (EDGE,) * 3) for n in range(8)])


@pytest.fixture
def unknown_sizes(cases: CaseIndex, monkeypatch: pytest.MonkeyPatch) -> CaseIndex:
    """As in a table that does not say how large the files are, so that blosc2 itself must notice."""
    monkeypatch.setattr(CaseIndex, "stored_bytes", lambda *_: 0)
    return cases


def volume(cases: CaseIndex, position: int) -> Path:
    return cases.folder / f"{cases.name(position)}.b2nd"


def shown(batch: Batch) -> list[int]:
    return (batch["data"].mean(dim=(1, 2, 3, 4)).round().int() - 1).tolist()


def training(cases: CaseIndex, batch_size: int = 4, **more: object) -> TrainingBatches:
    return TrainingBatches(cases, SETTINGS, STILL, batch_size, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", ["known", "unknown"])
@pytest.mark.parametrize("fault", FAULTS)
def test_another_case_stands_in_for_one_that_cannot_be_read(cases, fault, sizes, monkeypatch) -> None:
    if sizes == "unknown":
        monkeypatch.setattr(CaseIndex, "stored_bytes", lambda *_: 0)
    healthy = [training(cases)[0, i] for i in range(6)]
    FAULTS[fault](volume(cases, 3))
    seen = False
    for i in range(6):
        batch = training(cases)[0, i]
        for before, now, patch, clean in zip(
            shown(healthy[i]), shown(batch), batch["data"], healthy[i]["data"], strict=True
        ):
            assert now == before != 3 or (before == 3 != now)
            assert before == 3 or torch.equal(patch, clean)  # the other draws are as they were
        names = [name for name, _ in batch.get("replaced", [])]
        assert set(names) <= {"3"}
        assert names.count("3") >= shown(healthy[i]).count(3)
        assert all("3.b2nd cannot be read: " in problem for _, problem in batch.get("replaced", []))
        seen |= bool(names)
    assert seen


def test_with_the_same_faults_a_run_repeats_itself_whatever_the_workers(cases) -> None:
    volume(cases, 2).unlink()
    truncate(volume(cases, 5))
    batches = training(cases)
    stream = training_stream(batches, first_epoch=0, epochs=1, iterations=8, workers=2)
    replaced = []
    for i in range(8):
        batch = next(stream)
        again = batches[0, i]
        assert torch.equal(batch["data"], again["data"])
        assert torch.equal(batch["hidden"], again["hidden"])
        assert batch.get("replaced") == again.get("replaced")
        replaced += batch.get("replaced", [])
    stream.close()
    assert {name for name, _ in replaced} == {"2", "5"}


def test_a_pass_over_all_volumes_goes_on_without_the_lost_one(cases) -> None:
    volume(cases, 3).unlink()
    batches = training(cases, one_pass=OnePass(global_batch=4))
    taken = shown(batches[0, 0]) + shown(batches[0, 1])
    assert len(taken) == 8
    assert set(range(8)) - set(taken) == {3}


@pytest.mark.parametrize("reversal", [False, True])
def test_where_nothing_can_be_read_a_patch_of_which_nothing_counts_keeps_the_shapes(cases, reversal) -> None:
    noise = IntensityRecipe(additive_noise=AdditiveNoise(probability=1, sigma=(0.1, 0.2)))
    augmentation = STILL.model_copy(update={"intensity": noise, "reversal": True}) if reversal else STILL
    batches = TrainingBatches(cases, SETTINGS, augmentation, 2)
    expected = batches[0, 0]
    for position in range(8):
        volume(cases, position).unlink()
    batch = batches[0, 0]
    assert len(batch["replaced"]) == 2 * 11
    assert expected.keys() <= batch.keys()
    assert all(batch[key].shape == expected[key].shape for key in expected if key != "step")
    assert batch["excluded"].all()
    prediction = torch.randn_like(batch["data"]).requires_grad_()
    loss = reconstruction_loss(prediction, batch["data"], batch["hidden"], LossRecipe(), excluded=batch["excluded"])
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_a_validation_case_that_cannot_be_read_keeps_its_place_and_does_not_count(cases) -> None:
    batches = ValidationBatches(cases, SETTINGS, 4)
    healthy = batches[0]
    volume(cases, 1).unlink()
    batch = batches[0]
    assert batch["cases"] == healthy["cases"]
    assert [name for name, _ in batch["replaced"]] == ["1"]
    assert [index for index in range(4) if not torch.equal(batch["data"][index], healthy["data"][index])] == [1]
    prediction = torch.where(hidden_voxels(batch["hidden"], PATCH), 0.0, batch["data"])
    metrics = reconstruction_metrics(prediction, batch["data"], batch["hidden"], batch["data_range"], batch["excluded"])
    assert (metrics["counted"] > 0).tolist() == [True, False, True, True]


def test_a_damaged_exclusion_mask_is_a_damaged_case(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((EDGE,) * 3) < 0.5
    cases = store(tmp_path / "volumes", [np.ones((EDGE,) * 3)] * 2, masks={0: mask})
    truncate(exclusion_path(cases.folder, "0"))
    replaced = [f for i in range(4) for f in training(cases)[0, i].get("replaced", [])]
    assert {name for name, _ in replaced} == {"0"}
    assert "0_exclude.b2nd" in replaced[0][1]


@pytest.mark.parametrize("fault", ["vanished", "another size"])
def test_a_mask_that_is_not_as_the_table_says_is_a_damaged_case(tmp_path: Path, fault: str) -> None:
    """Otherwise the network would learn what was made unrecognisable."""
    mask = np.random.default_rng(0).random((EDGE,) * 3) < 0.5
    cases = store(tmp_path / "volumes", [np.ones((EDGE,) * 3)] * 2, masks={0: mask})
    path = exclusion_path(cases.folder, "0")
    assert cases.exclusion_bytes(0) == path.stat().st_size
    assert not any("replaced" in training(cases)[0, i] for i in range(4))
    if fault == "vanished":
        path.unlink()
    else:
        write_exclusion(path, np.zeros((1, EDGE, EDGE, EDGE), bool), PATCH)
    replaced = [f for i in range(4) for f in training(cases)[0, i].get("replaced", [])]
    assert {name for name, _ in replaced} == {"0"}
    assert "0_exclude.b2nd cannot be read" in replaced[0][1]


@pytest.mark.parametrize("said", [0, -1])
def test_a_mask_counts_even_if_the_table_does_not_tell_of_it(cases, monkeypatch, said: int) -> None:
    monkeypatch.setattr(CaseIndex, "exclusion_bytes", lambda *_: said)
    assert open_exclusion(cases, 0) is None
    write_exclusion(exclusion_path(cases.folder, "0"), np.ones((1, EDGE, EDGE, EDGE), bool), PATCH)
    mask = open_exclusion(cases, 0)
    assert mask is not None
    assert mask[:, :EDGE, :EDGE, :EDGE].all()


def test_a_foreground_grid_that_does_not_fit_is_a_damaged_case(tmp_path: Path) -> None:
    everywhere = np.ones((EDGE,) * 3, bool)
    cases = store(tmp_path / "volumes", [np.ones((EDGE,) * 3)] * 2, heads={0: everywhere[:9], 1: everywhere})
    masking = SETTINGS.masking.model_copy(update={"region": "foreground"})
    batch = TrainingBatches(cases, PatchSettings(PATCH, (4, 4, 4), masking, True, 7), STILL, 6)[0, 0]
    assert {name for name, _ in batch["replaced"]} == {"0"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_one_value_that_is_not_finite_is_noticed(value: float) -> None:
    voxels = np.random.default_rng(0).normal(0, 1e4, 5000).astype(np.float16)
    voxels[:4] = [65504, -65504, -0.0, 6e-8]
    assert is_finite(voxels)
    voxels[4321] = value
    assert not is_finite(voxels)


def test_a_file_of_another_size_is_noticed_before_it_is_read(cases) -> None:
    volume(cases, 0).write_bytes(volume(cases, 0).read_bytes() + b"more")
    with pytest.raises(DamagedCase, match=r"0\.b2nd cannot be read: it has \d+ bytes, and had \d+"):
        open_case(cases, 0)


def test_a_file_that_shrinks_while_it_is_open_does_not_kill_the_process(cases) -> None:
    array = open_case(cases, 0)
    volume(cases, 0).write_bytes(b"")
    with pytest.raises(DamagedCase, match="cannot be read"):
        array[:, : PATCH[0], : PATCH[1], : PATCH[2]]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def damaged(lines: list[str]) -> Callable[[int], DamagedCases]:
    def make(cases: int) -> DamagedCases:
        damaged = DamagedCases(lines.append)
        damaged.allow_for(cases)
        return damaged

    return make


def test_each_case_is_logged_once(damaged, lines) -> None:
    counter = damaged(100)
    counter.add([("a", "a.b2nd cannot be read: gone"), ("b", "x"), ("a", "gone again")])
    counter.add([("b", "x")])
    assert lines == [
        "WARNING: case a is passed over: a.b2nd cannot be read: gone",
        "WARNING: case b is passed over: x",
    ]


@pytest.mark.parametrize(
    ("training_cases", "accepted"), [(2, 1), (8, 4), (19, 9), (1000, 10), (1100, 11), (40_000, 400)]
)
def test_too_many_damaged_cases_end_the_run(damaged, training_cases: int, accepted: int) -> None:
    counter = damaged(training_cases)
    counter.add([(f"c{n}", f"c{n}.b2nd cannot be read: gone") for n in range(accepted)] * 3)
    with pytest.raises(UserError, match=rf"{accepted + 1} cases could not be read .*c0\.b2nd.*prepare` again.*--c"):
        counter.add([("last", "last.b2nd")])
