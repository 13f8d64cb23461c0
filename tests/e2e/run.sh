#!/usr/bin/env bash
# Clients of others, unchanged, against a cluster on this machine: installs
# them from PyPI into a virtual environment under build/e2e.
# Use: tests/e2e/run.sh openai|docs|lm-eval|guidellm
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
client=${1:?openai, docs, lm-eval or guidellm}
venv="$root/build/e2e/$client"
requirements="requirements-$client.txt"
if ! cmp -s "$requirements" "$venv/installed.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$venv/installed.txt"
fi
case $client in
  openai) "$venv/bin/python" -m unittest -v openai_client_test ;;
  docs) "$venv/bin/python" docs_test.py ;;
  lm-eval) "$venv/bin/python" lm_eval_test.py ;;
  guidellm) "$venv/bin/python" guidellm_test.py ;;
  *) echo "no such client: $client" >&2; exit 2 ;;
esac
