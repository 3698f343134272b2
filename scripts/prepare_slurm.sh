#!/usr/bin/env bash
# Prepares a catalogue on a Slurm cluster: every array task does a part, the one that ends last puts all together.
#
#   sbatch --array=1-64 scripts/prepare_slurm.sh /data/catalogue 900 Brains --recipe mae
#
# All tasks must see the same nnUNet_preprocessed and the scans under the paths of the catalogue. A task that was killed
# or timed out: submit the same array again; what is finished is not done twice. To submit some tasks of it only, say
# how many parts there are in all:
#
#   PARTS=64 sbatch --array=7,12 scripts/prepare_slurm.sh /data/catalogue 900 Brains --recipe mae
#
# For the catalogue itself:
#
#   sbatch --cpus-per-task=16 --wrap 'nnssl-mae scan /data/scans -o /data/catalogue -np $SLURM_CPUS_PER_TASK'
#SBATCH --job-name=nnssl-prepare
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
if [ $# -lt 3 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "Usage: sbatch --array=1-N prepare_slurm.sh CATALOGUE NUMBER NAME [OPTIONS OF nnssl-mae prepare]" >&2
    exit 2
fi
count="${SLURM_ARRAY_TASK_COUNT:-1}" first="${SLURM_ARRAY_TASK_MIN:-1}" last="${SLURM_ARRAY_TASK_MAX:-$SLURM_ARRAY_TASK_ID}"
if [ -z "${PARTS:-}" ] && { [ "$first" -ne 1 ] || [ "$last" -ne "$count" ]; }; then
    echo "The array has $count tasks, $first to $last: give --array=1-N without gaps, or set PARTS=N to do a part of it" >&2
    exit 2
fi
catalogue="$1" number="$2" name="$3"
shift 3
# One thread a process: the processes are what runs in parallel.
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
exec nnssl-mae prepare "$catalogue" -d "$number" -n "$name" \
    --shard "${SLURM_ARRAY_TASK_ID}/${PARTS:-$count}" -np "${SLURM_CPUS_PER_TASK:-8}" "$@"
