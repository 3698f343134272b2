#!/usr/bin/env bash
# Passes the tests from a bare checkout: makes its own environment, then lint, types and tests.
#   scripts/test.sh          the fast tier
#   scripts/test.sh --all    adds soak tests, kill loops and every preset through the real commands
#   scripts/test.sh ARGS...  anything else goes to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_environment.sh
make_environment .venv demo,dev,docs
install_anatomies

selection=(-m "not soak")
if [ "${1:-}" = "--all" ]; then
    selection=()
    shift
fi
ruff check .
ruff format --check .
mypy
# Files of tests side by side, each with one thread: twice as fast on two cores, and no more than a few GB.
export OMP_NUM_THREADS=1
python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
