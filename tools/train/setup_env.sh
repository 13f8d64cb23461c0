#!/usr/bin/env bash
# Makes build/venv with the packages of requirements.txt. Does nothing when it
# is already complete.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
venv="$root/build/venv"

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "python 3.11 or newer is needed" >&2
  exit 1
}
if ! cmp -s "$here/requirements.txt" "$venv/.ready"; then
  mkdir -p "$root/build"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -q -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/.ready"
fi
echo "$venv"
