#!/usr/bin/env bash
# Checks and measures everything that needs a CUDA GPU, on yours: exactness in 16 bit, steps, memory, loading, the demo.
#
#   scripts/gpu_report.sh REPORT                  every part, most important first
#   scripts/gpu_report.sh REPORT tests step       some of them
#
# Each part leaves REPORT/PART.txt (and .json) when it has ended well; the same command goes on with what is missing, so it
# may be stopped at any moment. A part that fails leaves PART.failed.txt and does not stop the others.
# Uses the environment that is active: `nnssl-mae doctor` should be content with it.
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "Usage: scripts/gpu_report.sh REPORT [PART...]" >&2
    exit 2
fi
mkdir -p "$1"
report="$(cd "$1" && pwd)"
shift
cd "$(dirname "$0")/.."
device="${DEVICE:-cuda}"
size=(${SIZE---whole --patch 160 --batch 2})
formats=(${FORMATS---amp fp16 --amp bf16})
larger=(${LARGER---batch 6})

part() {
    case "$1" in
    doctor) nnssl-mae doctor ;;
    tests) python -m pytest -q -m gpu tests/gpu ;;
    step) nnssl-mae bench step --device "$device" "${size[@]}" "${formats[@]}" --json "$report/step.json" ;;
    compiled) nnssl-mae bench step --device "$device" "${size[@]}" "${formats[@]:0:2}" --compile --json "$report/compiled.json" ;;
    larger) nnssl-mae bench step --device "$device" "${size[@]}" "${larger[@]}" "${formats[@]:0:2}" --json "$report/larger.json" ;;
    transformers)
        nnssl-mae bench step --device "$device" "${size[@]}" "${formats[@]:0:2}" --recipe nnformer --recipe primus_m \
            --json "$report/transformers.json"
        ;;
    end-to-end) nnssl-mae bench end-to-end --device "$device" --workers 4 ;;
    augment) nnssl-mae bench augment --device "$device" ;;
    loader) nnssl-mae bench loader ;;
    demo) nnssl-mae demo --device "$device" --out "$report/demo" ;;
    *) echo "There is no part '$1'; take some of: ${all[*]}" >&2 && return 2 ;;
    esac
}

all=(doctor tests step end-to-end compiled larger transformers augment loader demo)
for name in "${@:-${all[@]}}"; do
    [ -e "$report/$name.txt" ] && continue
    echo "== $name"
    if (part "$name") > "$report/$name.part" 2>&1; then
        mv "$report/$name.part" "$report/$name.txt"
        rm -f "$report/$name.failed.txt"
        cat "$report/$name.txt"
    else
        mv "$report/$name.part" "$report/$name.failed.txt"
        tail -n 20 "$report/$name.failed.txt" >&2
    fi
done
ls "$report"
if compgen -G "$report/*.failed.txt" > /dev/null; then
    exit 1
fi
