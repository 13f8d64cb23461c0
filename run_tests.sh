#!/usr/bin/env bash
# Builds everything and runs every test on a fresh Debian 12: installs what is
# missing first. Run it again at any time.
# Use: ./run_tests.sh [ARGUMENTS OF CTEST]
set -euo pipefail
cd "$(dirname "$0")"
echo "== installing packages"
scripts/install_deps.sh
scripts/build.sh release
echo "== testing"
ctest --test-dir build/release --output-on-failure --timeout 900 \
  -j "$(nproc)" "$@"
