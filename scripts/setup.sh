#!/usr/bin/env bash
# Makes .venv with the locked dependencies and this project; a second call finds its stamp and ends at once.
#   PYTHON=python3.12 scripts/setup.sh   another interpreter (default python3; 3.11 at least)
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
stamp=".venv/.setup-stamp"

inputs() { cat requirements.lock pyproject.toml scripts/setup.sh | sha256sum; }
if [ -x .venv/bin/mlops ] && [ -f "$stamp" ] && [ "$(inputs)" = "$(cat "$stamp")" ]; then
    exit 0
fi

fail() {
    echo "scripts/setup.sh: $1" >&2
    exit 1
}
command -v "$python" > /dev/null || fail "no $python; install Python 3.11 (Debian: sudo apt-get install python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; 3.11 is needed: PYTHON=python3.11 make setup"

if command -v flock > /dev/null; then # two `make` at once: the second waits and then finds the stamp
    exec 9< scripts/setup.sh
    flock 9
    [ ! -f "$stamp" ] || [ "$(inputs)" != "$(cat "$stamp")" ] || exit 0
fi

fetch_pip() { # Debian's own pip wheel, signed by its archive and unpacked into folder $1: needs no root
    mkdir -p "$1/lists/partial" "$1/archives/partial"
    folder="$(realpath "$1")"
    apt=(apt-get -qq -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder" -o Debug::NoLocking=1)
    "${apt[@]}" update
    (cd "$1" && "${apt[@]}" download python3-pip-whl)
    dpkg-deb -x "$1"/python3-pip-whl_*.deb "$1"
}

make_environment() {
    # Debian splits ensurepip off into python3-venv; a plain venv needs nothing, and any pip can install into it.
    mkdir -p .venv
    if "$python" -c 'import ensurepip, venv' 2> /dev/null && "$python" -m venv --clear .venv > /dev/null 2>&1; then
        pip=(.venv/bin/python -m pip)
        return
    fi
    "$python" -m venv --clear --without-pip .venv > /dev/null 2>&1 ||
        fail "$python has no venv module; install it with: sudo apt-get install python3-venv"
    if "$python" -m pip --python .venv/bin/python --version > /dev/null 2>&1; then
        "$python" -m pip --python .venv/bin/python install --quiet pip
        pip=(.venv/bin/python -m pip)
    else
        fetch_pip .venv/apt > /dev/null 2>&1 ||
            fail "no pip here and none to be had; install it with: sudo apt-get install python3-venv"
        wheel="$(echo .venv/apt/usr/share/python-wheels/pip-*.whl)"
        .venv/bin/python "$wheel/pip" install --quiet --no-index "$wheel"
        rm -rf .venv/apt
        pip=(.venv/bin/python -m pip)
    fi
}

# pip asks `rustc` for its version, and a rustup that is new to this home folder writes its settings there.
[ -d "${RUSTUP_HOME:-${HOME:-}/.rustup}" ] || export RUSTUP_HOME="$PWD/.venv/rustup"
pip=(.venv/bin/python -m pip)
"${pip[@]}" --version > /dev/null 2>&1 || make_environment
export PIP_DISABLE_PIP_VERSION_CHECK=1
echo "installing the locked dependencies into .venv (a few minutes the first time)"
"${pip[@]}" install --quiet --use-pep517 --requirement requirements.lock
"${pip[@]}" install --quiet --no-deps --editable .
inputs > "$stamp"
