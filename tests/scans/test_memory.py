from types import SimpleNamespace

from nnssl_mae.scans.memory import preprocessing_bytes

HEAD = SimpleNamespace(size_x=200, size_y=200, size_z=100, spacing_x=1.0, spacing_y=1.0, spacing_z=2.0)


def test_finer_voxels_cost_more_memory() -> None:
    kept, isotropic, finer = (preprocessing_bytes(HEAD, spacing) for spacing in (None, (1, 1, 1), (0.5, 0.5, 0.5)))
    assert kept < isotropic < finer
    assert finer > 64e6 * 16  # at least the volume of 16 times as many voxels as were read
    unknown = SimpleNamespace(**{**vars(HEAD), "spacing_x": float("nan")})
    assert preprocessing_bytes(unknown, (1, 1, 1)) == kept
