#!/bin/sh
# Makes a virtual environment with the pinned packages, once, and runs
# make_goldens.py in it with the same arguments. Needs python3 and python3-venv.
# TROUPE_GOLDENS_VENV names another place for the environment.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${TROUPE_GOLDENS_VENV:-$here/../../build/venv-goldens}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if ! cmp -s "$here/requirements.txt" "$venv/goldens-requirements.txt"; then
  "$venv/bin/pip" install --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/goldens-requirements.txt"
fi
exec "$venv/bin/python" "$here/make_goldens.py" "$@"
