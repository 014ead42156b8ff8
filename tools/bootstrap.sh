#!/bin/sh
# Makes or refreshes .venv, and says in one sentence what is missing on this machine.
#
#   tools/bootstrap.sh demo    everything a user needs
#   tools/bootstrap.sh dev     the same, editable, and the tools of the tests
set -eu
mode=${1:-demo}
cd "$(dirname "$0")/.."

fail() {
    printf 'rift: %s\n' "$1" >&2
    exit 1
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "no Python 3.11 or newer found: install it (Debian, Ubuntu: apt install python3) or set PYTHON=..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv)"
# The compiler that extension modules are built with: the environment's, else Python's own, else any other.
compiler=${CC:-$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "cc")')}
if ! command -v "${compiler%% *}" >/dev/null 2>&1; then
    [ -z "${CC:-}" ] || fail "the C compiler CC=$CC is not there: install it, or unset CC"
    for CC in cc gcc clang ''; do
        [ -z "$CC" ] || ! command -v "$CC" >/dev/null 2>&1 || break
    done
    [ -n "$CC" ] || fail "no C compiler found: install one (Debian, Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install)"
    export CC
fi
header=$("$python" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))')
[ -e "$header" ] || fail "the headers of $python are missing ($header): install them (Debian, Ubuntu: apt install python3-dev)"

[ -x .venv/bin/python ] || {
    printf 'Creating .venv with %s\n' "$("$python" --version)"
    "$python" -m venv .venv || {
        rm -rf .venv
        fail "cannot create .venv: on Debian and Ubuntu, apt install python3-venv"
    }
}

# macOS lets only a signed Python use its hypervisor. Without a signature the rest works: `rift doctor` tells.
sign() {
    [ "$(uname -s 2>/dev/null)" != Darwin ] || .venv/bin/rift macos-sign --if-needed || :
}

# Reinstall only when something that decides the result has changed.
stamp=.venv/rift-$mode.stamp
inputs=$(find rift_core plugins pyproject.toml requirements*.txt tools/bootstrap.sh \
    \( -name '*.c' -o -name '*.h' -o -name 'pyproject.toml' -o -name 'setup.py' -o -name '_native_build.py' \
    -o -name 'requirements*.txt' -o -name 'bootstrap.sh' \) -not -name '_native.c' -type f -newer "$stamp" 2>/dev/null || echo first)
if [ -e "$stamp" ] && [ -z "$inputs" ]; then
    sign
    exit 0
fi
printf 'Installing Rift (%s) into .venv ...\n' "$mode"
pip=".venv/bin/python -m pip --disable-pip-version-check"
$pip install -q -r requirements-build.txt || fail "pip could not install the build requirements (see above): is the package index reachable?"
if [ "$mode" = dev ]; then
    $pip install -q --no-build-isolation -r requirements-dev.txt || fail "the development install failed (see above)"
else
    $pip install -q --no-build-isolation -r requirements.txt || fail "the install failed (see above)"
fi
touch "$stamp"
sign
