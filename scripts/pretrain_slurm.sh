#!/usr/bin/env bash
# Pre-trains on several GPUs of several machines of a Slurm cluster, over as many jobs as it takes.
#
#   sbatch --nodes=2 --gpus-per-node=4 scripts/pretrain_slurm.sh -d 900
#   sbatch --nodes=2 --gpus-per-node=4 scripts/pretrain_slurm.sh -d 900 -p nnsslMAEPlans_s3d
#
# Three minutes before its time limit, or when it is pre-empted, the run saves the step at work; it is queued again and goes
# on there. A step that fails for another reason ends the job: look at its log, then submit the same command again.
# For one GPU, nnUNetv2_train in a job with --signal=TERM@180 does as well (-num_gpus ends at once: take this script).
#SBATCH --job-name=nnssl-pretrain
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "Usage: sbatch --nodes=N --gpus-per-node=M pretrain_slurm.sh OPTIONS OF nnssl-mae pretrain" >&2
    exit 2
fi
gpus="${SLURM_GPUS_ON_NODE:-1}"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
port=$((20000 + SLURM_JOB_ID % 20000))
# Workers that load batches, for each GPU.
export nnUNet_n_proc_DA="${nnUNet_n_proc_DA:-$((${SLURM_CPUS_PER_TASK:-32} / gpus - 1))}" OMP_NUM_THREADS=1

again=""
# Without --full or --batch, scancel signals the job's steps and not this script. torchrun passes SIGTERM on.
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 torchrun --nnodes "${SLURM_JOB_NUM_NODES:-1}" --nproc-per-node "$gpus" \
    --rdzv-backend c10d --rdzv-endpoint "${hosts%%$'\n'*}:$port" --rdzv-id "$SLURM_JOB_ID" \
    -m nnssl_mae pretrain --c "$@" &
step=$!
# A trapped signal ends `wait` early.
while :; do
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2>/dev/null || break
done
if [ -n "$again" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
