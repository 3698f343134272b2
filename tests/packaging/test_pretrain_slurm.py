"""The Slurm script of pre-training. There is no cluster here: srun, scancel and scontrol are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_slurm.sh"
STAND_INS = {
    # A step that runs until it is told to stop, as torchrun does when it gets SIGTERM, or that ends as FATE says.
    "srun": 'echo "$@" > "$SAID/srun"\n[ -z "$FATE" ] || exit "$FATE"\n'
    'trap "exit 1" TERM\necho $$ > "$SAID/step"\nwhile :; do sleep 0.05; done',
    "scancel": 'echo "$@" > "$SAID/scancel"\nkill -TERM "$(cat "$SAID/step")"',
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" > "$SAID/scontrol"; fi',
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two machines with four GPUs each."""
    for name, body in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{body}\n")
        program.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SAID": str(tmp_path),
        "FATE": "",
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=environment, text=True, stderr=subprocess.PIPE)


def test_before_its_time_limit_it_stops_the_step_and_queues_the_job_again(cluster, tmp_path: Path) -> None:
    job = start(cluster, "-d", "900")
    deadline = time.monotonic() + 30
    while not (tmp_path / "step").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 1
    assert (tmp_path / "scancel").read_text() == "--signal=TERM 41\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 41\n"
    started = (tmp_path / "srun").read_text()
    assert "--nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint node7:20041" in started
    assert started.endswith("-m nnssl_mae pretrain --c -d 900\n")


@pytest.mark.parametrize("fate", ["0", "3"])
def test_a_job_that_ends_by_itself_is_not_queued_again(cluster, tmp_path: Path, fate: str) -> None:
    assert start(cluster | {"FATE": fate}, "-d", "900").wait(30) == int(fate)
    assert not (tmp_path / "scontrol").exists()


def test_outside_of_a_job_it_says_how_to_submit_it(cluster) -> None:
    del cluster["SLURM_JOB_ID"]
    job = start(cluster, "-d", "900")
    assert job.wait(30) == 2
    assert job.stderr is not None and "sbatch --nodes=N" in job.stderr.read()
