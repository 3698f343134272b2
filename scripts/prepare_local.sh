#!/usr/bin/env bash
# Scans, reports and prepares on one machine, and goes on where it was killed: run the same line again.
#
#   scripts/prepare_local.sh /data/scans /data/catalogue 900 Brains --recipe mae
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "Usage: $0 SCANS CATALOGUE NUMBER NAME [OPTIONS OF nnssl-mae prepare]" >&2
    exit 2
fi
scans="$1" catalogue="$2" number="$3" name="$4"
shift 4
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
processes="$(nproc)"
nnssl-mae scan "$scans" -o "$catalogue" -np "$processes"
nnssl-mae scan report "$catalogue"
nnssl-mae prepare "$catalogue" -d "$number" -n "$name" -np "$processes" "$@"
