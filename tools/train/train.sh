#!/usr/bin/env bash
# Makes the demo model from the text: tokenizer, training, the comparison run
# without auxiliary loss, export, evaluation, model card. Run it again after an
# interruption: each step goes on where it stopped.
#
#   tools/train/train.sh --data DIR [--work DIR] [--out DIR] [--tokens N]
#                        [--minutes N] [--compare-tokens N]
#
# DIR holds stories.txt.gz and stories-valid.txt.gz, see README.md.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"

data="$root/build/data"
work="$root/build/train"
out="$root/models/demo"
tokens=20000000
minutes=100000
compare_tokens=1000000
while (($#)); do
  case "$1" in
    --data) data="$2" ;;
    --work) work="$2" ;;
    --out) out="$2" ;;
    --tokens) tokens="$2" ;;
    --minutes) minutes="$2" ;;
    --compare-tokens) compare_tokens="$2" ;;
    *) sed -n '2,10p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
  shift 2
done

python="$("$here/setup_env.sh")/bin/python"
mkdir -p "$work" "$out"

if [[ ! -f "$work/tokenizer.json" ]]; then
  "$python" "$here/prepare.py" --data "$data" --work "$work"
fi
# Both runs read the same text in the same order and, up to compare_tokens,
# with the same step sizes; --decay-from 1 keeps the comparison in that part.
"$python" "$here/train.py" --work "$work" --run main --max-tokens "$tokens" \
  --minutes "$minutes" --snapshot-at "$compare_tokens"
"$python" "$here/train.py" --work "$work" --run collapse --aux 0 --decay-from 1 \
  --max-tokens "$compare_tokens"

"$python" "$here/export.py" --work "$work" --checkpoint "$work/main/last.pt" \
  --out "$out"
"$python" "$here/evaluate.py" --work "$work" --out "$work/results.json" \
  --samples-of final \
  final="$work/main/last.pt" \
  balanced="$work/main/at-$compare_tokens.pt" \
  collapse="$work/collapse/last.pt"
"$python" "$here/card.py" --work "$work" --results "$work/results.json" --out "$out"
if [[ -f "$data/ATTRIBUTION.tsv" ]]; then
  cp "$data/ATTRIBUTION.tsv" "$out/ATTRIBUTION.tsv"
  chmod 644 "$out/ATTRIBUTION.tsv"
fi
