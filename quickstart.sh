#!/usr/bin/env bash
# From a fresh Debian 12 to a story: installs what is missing, builds, serves
# the demo model with a gateway, a router and four expert processes, prints the
# answer to one prompt, and stops them all. Run it again at any time.
# Use: ./quickstart.sh [PROMPT]
set -euo pipefail
cd "$(dirname "$0")"
prompt=${1:-"Once upon a time, there was a little girl who found a"}
echo "== installing packages"
scripts/install_deps.sh
scripts/build.sh release troupe troupe-gateway troupe-router troupe-expert
echo "== serving models/demo: one gateway, one router, four expert processes"
build/release/bin/troupe serve models/demo --experts 4 \
  --listen 127.0.0.1:0 --once "$prompt"
cat <<TEXT

Next:
  build/release/bin/troupe serve models/demo          # and leave it running
  build/release/bin/troupe generate "One day, a dog"  # in another terminal
  curl http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' \\
    -d '{"prompt": "One day, a dog", "max_tokens": 40}'
TEXT
