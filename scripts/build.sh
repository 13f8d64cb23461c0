#!/usr/bin/env bash
# Configures and builds targets of a preset, with progress.
# Use: scripts/build.sh PRESET [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
echo "== configuring ($preset)"
cmake --preset "$preset" >"build-$preset.log" 2>&1 || {
  cat "build-$preset.log"
  rm -f "build-$preset.log"
  exit 1
}
rm -f "build-$preset.log"
echo "== building (a first build takes several minutes)"
# ninja shows [done/total]; a line per file where it is not a terminal.
ninja -C "build/$preset" "$@"
