from pathlib import Path

import pytest

from nnssl_mae import memory
from nnssl_mae.memory import free_memory, memory_budget


def test_the_budget_is_what_the_user_says_or_a_part_of_what_is_free() -> None:
    assert memory_budget(10**9) == 1e9
    assert 0 < memory_budget(None) < free_memory()


def write_group(folder: Path, limit: str, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text("anon 5\ninactive_file 100\n")


def test_the_limits_of_a_job_and_of_what_it_belongs_to_count(tmp_path: Path) -> None:
    write_group(tmp_path / "slurm", "5000", 4000)
    write_group(tmp_path / "slurm" / "job_7", "max", 300)
    assert memory._free_in_groups(tmp_path, "/slurm/job_7") == [1100.0]
    write_group(tmp_path / "slurm" / "job_7", "1000", 300)
    assert min(memory._free_in_groups(tmp_path, "/slurm/job_7")) == 800.0
    assert memory._free_in_groups(tmp_path / "nothing", "/") == []


@pytest.mark.parametrize(("text", "group"), [("0::/slurm/job_7\n", "/slurm/job_7"), ("5:cpu:/x\n", "/"), (None, "/")])
def test_the_group_of_a_process(tmp_path: Path, text: str | None, group: str) -> None:
    file = tmp_path / "cgroup"
    if text is not None:
        file.write_text(text)
    assert memory._own_group(file) == group
