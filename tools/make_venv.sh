#!/bin/sh
# make_venv.sh DIR [PYTHON]: a virtual environment with all the project needs.
set -eu
venv=$1

supported() {
  "$1" -c 'import sys, venv, ensurepip
sys.exit(not (3, 10) <= sys.version_info < (3, 13))' >/dev/null 2>&1
}

python=""
for candidate in ${2:+"$2"} python3.11 python3.12 python3.10 python3 python; do
  if supported "$candidate"; then
    python=$candidate
    break
  fi
  if [ "$candidate" = "${2:-}" ]; then
    echo "PYTHON=$2 is not a Python 3.10, 3.11 or 3.12 with venv." >&2
    exit 1
  fi
done
if [ -z "$python" ]; then
  echo "No Python 3.10, 3.11 or 3.12 with the venv module was found." >&2
  echo "Install one (Debian, Ubuntu: apt-get install python3-venv)," >&2
  echo "or name it: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
fi

echo "Making $venv with $("$python" --version); this takes a minute or two."
rm -rf "$venv"
"$python" -m venv "$venv"
# The pip that comes with Python 3.10 searches for ever for versions that agree.
# --no-compile: most modules of the dependencies are never imported.
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
  --upgrade pip
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
  --no-compile \
  --editable '.[scann,data,beam,serving,plots,tune,bench,docs,test]'
