#!/usr/bin/env bash
# Writes the documentation as a site to site/, and fails at any warning: a broken link, a page that no menu names.
#   scripts/docs.sh            site/index.html can be opened from the disk, without a server
#   scripts/docs.sh --pictures makes the pictures of docs/concepts.md anew first (a minute on a CPU)
# The environment needs the extra `docs`; where mkdocs is missing, one is made (.venv-docs).
set -euo pipefail
cd "$(dirname "$0")/.."
if ! python3 -c 'import mkdocs, material, mkdocstrings' 2>/dev/null; then
    . scripts/_environment.sh
    make_environment .venv-docs demo,docs
fi
if [ "${1:-}" = "--pictures" ]; then
    shift
    OMP_WAIT_POLICY=PASSIVE python3 scripts/docs_pictures.py docs/images
fi
# mkdocs-material prints an advertisement about mkdocs 2 otherwise.
export NO_MKDOCS_2_WARNING=1
exec python3 -m mkdocs build --strict "$@"
