#!/usr/bin/env bash
# Troupe beside llama.cpp: same machine, same cores, same random weights, equal
# bits per weight, in turns. Makes a virtual environment with the peer once,
# built for this machine's instruction set, then runs compare.py with the same
# arguments (--help). Needs a built build/release, python3 with venv, a compiler,
# cmake and ninja. TROUPE_PEER_VENV names another place for the environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${TROUPE_PEER_VENV:-$here/../../../build/venv-peer}
# What the peer's own documentation advises for a CPU; llamafile's matrix
# products and repacked weights are the fast paths of its CPU back end.
export CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
-DGGML_LLAMAFILE=ON -DGGML_CPU_REPACK=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF \
-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF \
-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF"
wanted="$(cat "$here/requirements.txt") $CMAKE_ARGS $(c++ --version | head -1)"
if [ "$(cat "$venv/peer-build" 2>/dev/null)" != "$wanted" ]; then
  python3 -m venv "$venv"
  CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$venv/bin/pip" install --quiet \
    --no-binary llama-cpp-python --requirement "$here/requirements.txt"
  printf '%s' "$wanted" >"$venv/peer-build"
fi
exec "$venv/bin/python" "$here/compare.py" "$@"
