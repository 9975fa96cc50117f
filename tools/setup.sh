#!/bin/sh
# Sets up the environment in .venv, one stage a call: venv PYTHON, site, all.
set -eu

fail() {
    echo "Set-up stopped: $1" >&2
    exit 1
}

install() {
    echo "Installing $1 (a minute or two) ..."
    shift
    .venv/bin/pip install --quiet -c requirements/constraints.txt "$@" ||
        fail "pip could not install the line above; check the network, then run the same command again"
}

case "$1" in
venv)
    "$2" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
        fail "the book needs Python 3.11, 3.12 or 3.13; name one: make book PYTHON=python3.12"
    echo "Creating the environment in .venv ..."
    "$2" -m venv .venv ||
        fail "python could not create .venv; on Debian and Ubuntu: apt install python3-venv"
    touch .venv/python
    ;;
site)
    install "what builds the site" -r requirements/site.txt
    PYTHONPATH=. .venv/bin/python -m tools.assets
    touch .venv/site
    ;;
all)
    install "PyTorch, the other frameworks and the tests" -r requirements.txt
    .venv/bin/python -c "import triton" 2>/dev/null ||
        install "Triton, which this build of PyTorch does not bring" \
            -r requirements/kernels.txt
    .venv/bin/pip install --quiet --no-deps --no-build-isolation -e . ||
        fail "pip could not install normlab from this folder"
    touch .venv/all
    ;;
esac
