#!/bin/sh
# Makes the virtual environment and installs the pinned versions. Run it again to resume.
set -eu
VENV=${VENV:-.venv}

say() { printf '%s\n' "$*" >&2; }

works() { # a Python 3.11 or newer that can make virtual environments
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

install_with_pip() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --group dev --editable .
}

if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -c '' 2>/dev/null; then
    rm -rf "$VENV"
    found=
    for candidate in python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null 2>&1 && works "$candidate"; then
            found=$candidate
            break
        fi
    done
    if [ -n "$found" ]; then
        say "Making $VENV with $($found --version 2>&1) …"
        "$found" -m venv "$VENV"
    elif command -v uv >/dev/null 2>&1; then
        say "Making $VENV with uv …"
        uv venv --quiet --seed --python '>=3.11' "$VENV"
    else
        say "No Python 3.11 or newer with venv was found. Type one of these, then make again:"
        case $(uname -s) in
            Darwin) say "    brew install python@3.13" ;;
            *) say "    sudo apt-get install -y python3-venv     # Debian, Ubuntu"
               say "    sudo dnf install -y python3.12           # Fedora, RHEL" ;;
        esac
        exit 1
    fi
fi

say "Installing pinned packages …"
# `--group` needs pip 25.1.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
install_with_pip
