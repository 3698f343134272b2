#!/usr/bin/env bash
# Prepares a catalogue on a Slurm cluster: every array task does a part, the one that ends last puts all together.
#
#   sbatch --array=1-64 scripts/prepare_slurm.sh /data/catalogue 900 Brains --recipe mae
#
# All tasks must see the same nnUNet_preprocessed and the scans under the paths of the catalogue. A task that was killed
# or timed out: submit the same array again; what is finished is not done twice. For the catalogue itself:
#
#   sbatch --wrap 'nnssl-mae scan /data/scans -o /data/catalogue -np $SLURM_CPUS_PER_TASK' --cpus-per-task=16
#SBATCH --job-name=nnssl-prepare
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "Usage: sbatch --array=1-N $0 CATALOGUE NUMBER NAME [OPTIONS OF nnssl-mae prepare]" >&2
    exit 2
fi
catalogue="$1" number="$2" name="$3"
shift 3
# One thread a process: the processes are what runs in parallel.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
exec nnssl-mae prepare "$catalogue" -d "$number" -n "$name" \
    --shard "${SLURM_ARRAY_TASK_ID}/${SLURM_ARRAY_TASK_COUNT}" -np "${SLURM_CPUS_PER_TASK:-8}" "$@"
