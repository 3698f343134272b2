#!/usr/bin/env bash
# Runs a study of docs/study from a bare checkout: makes its own environment, the brains, trainings, comparison.
#   scripts/study.sh small       every arm on a CPU, about two hours on two cores: proves the machinery, no claim
#   scripts/study.sh reference   the reference study; needs a GPU
# Everything goes to study_output/NAME; killed, the same command goes on. Further arguments go to `nnssl-mae study`
# instead of --run: scripts/study.sh reference --dry-run prices it, --slurm writes jobs.
set -euo pipefail
cd "$(dirname "$0")/.."
name="${1:?name a study of docs/study: small or reference}"
shift
. scripts/_environment.sh
make_environment .venv demo
install_anatomies
out="$PWD/study_output/$name"
mkdir -p "$out"
nnssl-mae brains "docs/study/$name.brains.yaml" -o "$out"
cp "docs/study/$name.yaml" "$out/study.yaml"
export nnUNet_raw="$out/nnUNet_raw" nnUNet_preprocessed="$out/nnUNet_preprocessed" nnUNet_results="$out/nnUNet_results"
nnssl-mae study "$out/study.yaml" "${@:---run}"
