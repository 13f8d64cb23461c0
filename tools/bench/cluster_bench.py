#!/usr/bin/env python3
"""Our cluster beside our engine in one process: decode, prefill, the hop.

Takes both in turns, so that a change of the machine meets both, and prints a
table for docs/benchmarks.md. The cluster (gateway, router, expert processes)
is measured at the client's API. Without MODEL_DIR a random Mixtral of about 1
billion parameters is made in build/bench. Needs a built build/release.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys

import measure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", nargs="?", metavar="MODEL_DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experts", type=int, default=4, help="expert processes")
    parser.add_argument("--runs", type=int, default=2, help="of each in a round")
    flags = parser.parse_args()
    model_dir = flags.model_dir or measure.make_model(
        "mixtral", measure.ROOT / "build/bench/mixtral"
    )

    local = {name: [] for name in measure.MEASURES}
    cluster = {name: [] for name in measure.MEASURES}
    hops = {name: [] for name in measure.MEASURES}
    peaks = []
    for round_number in range(flags.rounds):
        print(f"round {round_number + 1} of {flags.rounds}", file=sys.stderr)
        busy = measure.wait_until_idle()
        if busy > measure.MAX_BUSY:
            sys.exit(
                f"cluster_bench: other processes take {100 * busy:.0f}% of the "
                "processors"
            )
        peaks.append(measure.machine_peak())
        for who in ("cluster", "local") if round_number % 2 else ("local", "cluster"):
            if who == "local":
                add(local, measure.engine_rates(model_dir, flags.runs))
            else:
                rates, hop_shares = measure.cluster_rates(
                    model_dir, flags.experts, flags.runs
                )
                add(cluster, rates)
                add(hops, hop_shares)
    print(report(model_dir, flags, local, cluster, hops, peaks))


def add(lists, values):
    for name, value in values.items():
        lists[name].append(value)


def report(model_dir, flags, local, cluster, hops, peaks):
    machine = measure.describe_machine()
    lines = [
        f"{pathlib.Path(model_dir).name}, {machine['cpu']}, {machine['cores']} cores, "
        f"{flags.rounds} rounds, commit {machine['commit']}; read bandwidth "
        f"{measure.spread([peak['read_gb_s'] for peak in peaks])} GB/s at best, usually "
        f"{measure.spread([peak['usual_read_gb_s'] for peak in peaks])}, multiply-add "
        f"{measure.spread([peak['gflop_s'] for peak in peaks])} GFLOP/s.",
        "",
        f"| tokens/s, median (min - max) | one process | cluster, {flags.experts} "
        "expert processes | ratio | of the router's time that is the hop |",
        "|---|---|---|---|---|",
    ]
    for name in measure.MEASURES:
        ratio = measure.ratios(cluster[name], local[name])
        share = statistics.median(hops[name])
        lines.append(
            f"| {name} | {measure.spread(local[name])} | "
            f"{measure.spread(cluster[name])} | {measure.spread(ratio)} | "
            f"{100 * share:.0f}% |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            main()
        except measure.BenchError as error:
            sys.exit(f"cluster_bench: {error}")
