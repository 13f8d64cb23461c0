#!/usr/bin/env bash
# Runs clang-tidy (.clang-tidy) over the sources that differ from a commit, or
# over all of them. Needs a configured build/release.
# Use: scripts/clang_tidy.sh [COMMIT]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then
  mapfile -t sources < <(git diff --name-only --diff-filter=AM "$1" -- '*.cc')
else
  mapfile -t sources < <(git ls-files '*.cc')
fi
[ ${#sources[@]} -eq 0 ] && { echo "nothing to check"; exit 0; }
printf '%s\n' "${sources[@]}" |
  # clang does not know gcc's -Wshadow=local.
  xargs -P "$(nproc)" -n 4 clang-tidy-14 -p build/release --quiet \
    --extra-arg=-Wno-unknown-warning-option
