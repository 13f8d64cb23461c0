#!/usr/bin/env bash
# The table of docs/benchmarks.md: decode and prefill rates of one model, in one
# process and as a cluster of four expert processes, taken in turns, beside what
# the machine can do. Makes a random Mixtral of about 1 billion parameters when
# no model is given. Needs a built build/release.
# Use: tools/bench/table.sh [MODEL_DIR [ROUNDS]]
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=build/release/bin
model=${1:-build/bench/mixtral-1b}
rounds=${2:-3}
port=${TROUPE_BENCH_PORT:-7179}
if [ ! -f "$model/config.json" ]; then
  mkdir -p "$(dirname "$model")"
  "$bin/troupe" make-model "$model" --hidden 1024 --layers 12 --heads 16 \
    --kv-heads 4 --expert-width 2816 --experts 8 --top-k 2 --vocab 32000
fi
work=$(mktemp -d)
server=
stop() {
  if [ -n "$server" ]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
  fi
}
trap 'stop; rm -rf "$work"' EXIT

# Column 2 (mean) of a row of `troupe bench`.
mean() { awk -v row="$1" '$1 == row { print $2 }'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

for round in $(seq "$rounds"); do
  "$bin/machine_peak" >"$work/peak.$round"
  "$bin/troupe-engine-bench" "$model" --runs 1 >"$work/engine.$round"
  awk '/^prefill/ { print $2 }' "$work/engine.$round" >>"$work/local.prefill"
  for n in 1 8 32; do
    awk -v n="$n," '$1 == "decode," && $2 + 0 == n + 0 { print $(NF - 1) }' \
      "$work/engine.$round" >>"$work/local.$n"
  done

  "$bin/troupe" serve "$model" --experts 4 --listen "127.0.0.1:$port" \
    >"$work/serve.log" 2>&1 &
  server=$!
  until grep -q '^troupe | ready' "$work/serve.log"; do
    kill -0 "$server" || { cat "$work/serve.log"; exit 1; }
    sleep 0.2
  done
  address=127.0.0.1:$port
  "$bin/troupe" bench --address "$address" --prompt-tokens 512 --max-tokens 1 \
    --requests 3 --warmup 1 2>/dev/null >"$work/report"
  awk -v ttft="$(mean TTFT <"$work/report")" \
    'BEGIN { print 512000 / ttft }' >>"$work/cluster.prefill"
  for n in 1 8 32; do
    "$bin/troupe" bench --address "$address" --concurrency "$n" \
      --requests "$n" --prompt-tokens 16 --max-tokens 64 --warmup 1 \
      2>/dev/null >"$work/report"
    awk -v n="$n" -v tpot="$(mean TPOT <"$work/report")" \
      'BEGIN { print n * 1000 / tpot }' >>"$work/cluster.$n"
  done
  stop
done

echo "## machine, round 1 to $rounds"
cat "$work"/peak.*
echo "## tokens/s, medians of $rounds rounds (min - max)"
echo "| | one process | cluster, 4 expert processes | ratio |"
echo "|---|---|---|---|"
for what in 1 8 32 prefill; do
  case $what in
    prefill) name="prefill, 512 tokens" ;;
    1) name="decode, 1 sequence" ;;
    *) name="decode, $what sequences" ;;
  esac
  local_rate=$(median <"$work/local.$what")
  cluster_rate=$(median <"$work/cluster.$what")
  range() { sort -n "$1" | sed -n '1p;$p' | paste -sd ' ' |
    awk '{ printf "%.0f - %.0f", $1, $2 }'; }
  awk -v name="$name" -v a="$local_rate" -v b="$cluster_rate" \
    -v ra="$(range "$work/local.$what")" -v rb="$(range "$work/cluster.$what")" \
    'BEGIN { printf "| %s | %.1f (%s) | %.1f (%s) | %.2f |\n",
             name, a, ra, b, rb, b / a }'
done
