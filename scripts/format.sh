#!/usr/bin/env bash
# Formats all C++ sources in place, or with --check fails when one differs.
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files '*.cc' '*.h' | {
  if [ "${1:-}" = --check ]; then
    xargs clang-format-14 --dry-run --Werror
  else
    xargs clang-format-14 -i
  fi
}
