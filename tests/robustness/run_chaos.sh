#!/usr/bin/env bash
# The long run: faults on the demo model for an hour, or --minutes M, with a
# seed of one's own. Goes on where it was interrupted with --resume.
#   tests/robustness/run_chaos.sh --minutes 60 --seed 7 [--resume]
# Needs a release build (scripts/build.sh release). Results, one line of JSON
# per fault, and logs are in build/release/chaos.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/release/chaos
mkdir -p "$out"
exec build/release/tests/chaos --model models/demo --period 30 \
  --outage-ms 10000 --results "$out/results.jsonl" --work-dir "$out" \
  --minutes 60 "$@"
