#!/usr/bin/env bash
# Shows the whole path on real brain anatomy: pre-train, fine-tune, predict, report with pictures.
# Makes its own environment. Extra arguments go to `nnssl-mae demo` (--out DIR, --device cuda, --full).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_environment.sh
make_environment .venv demo
nnssl-mae demo "$@"
