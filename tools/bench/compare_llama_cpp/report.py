"""The comparison's table, from its JSON. Standard library only."""

import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import measure  # noqa: E402

BITS_PER_WEIGHT = {"bf16": 16, "int8": 8.5, "int4": 4.5}


def _column(rounds, who, name):
    return [one[who][name] for one in rounds if who in one]


def _ratio(rounds, who, name):
    """ours / the peer's of the rounds that have both."""
    both = [one for one in rounds if who in one and "peer" in one]
    return measure.ratios(_column(both, who, name), _column(both, "peer", name))


def _spread(values):
    return measure.spread(values) if values else "-"


def _rate_rows(form, rounds):
    for name in measure.MEASURES:
        cells = [
            form,
            name,
            *(_spread(_column(rounds, who, name)) for who in ("peer", "engine")),
            _spread(_ratio(rounds, "engine", name)),
            _spread(_column(rounds, "cluster", name)),
            _spread(_ratio(rounds, "cluster", name)),
        ]
        yield f"| {' | '.join(cells)} |"


def bandwidth_share(rounds, who, active_weights, bits, bandwidth):
    """Median over rounds of the bytes of weights that decoding one sequence reads
    in a second, over the bandwidth that was measured in that round: "73%"."""
    bytes_per_token = active_weights * bits / 8
    shares = [
        one[who]["decode 1"] * bytes_per_token / (one["peak"][bandwidth] * 1e9)
        for one in rounds
        if who in one
    ]
    return f"{100 * statistics.median(shares):.0f}%" if shares else "-"


def markdown(results):
    machine = results["machine"]
    peer = results["peer"]
    all_rounds = [one for rounds in results["rounds"].values() for one in rounds]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['instruction_set'].removeprefix('instruction set ')}, "
        f"Linux {machine['kernel']}, {machine['compiler']}; Troupe at "
        f"{machine['commit']}. llama-cpp-python {peer['llama_cpp_python']} (ggml "
        f"{peer['ggml']}) built with `{peer['build']}`; {peer['settings']}.",
        "",
        f"`{results['command']}`: medians (min - max), tokens/s; a ratio is of the "
        "same round.",
        "",
        f"| {results['shape']} | | llama.cpp | one process | ratio | cluster | "
        "ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for form, rounds in results["rounds"].items():
        if not rounds:
            continue
        lines += _rate_rows(f"{form}, {len(rounds)} rounds", rounds)
    busy = sum(one.get("busy", 0) > measure.MAX_BUSY for one in all_rounds)
    if busy:
        lines += ["", f"{busy} of {len(all_rounds)} rounds began on a busy machine."]
    lines += [
        "",
        "Read bandwidth in the same rounds: "
        f"{_spread([one['peak']['read_gb_s'] for one in all_rounds])} GB/s at best, "
        f"usually {_spread([one['peak']['usual_read_gb_s'] for one in all_rounds])} "
        "GB/s (in pieces of an expert's size); "
        "multiply-add: "
        f"{_spread([one['peak']['gflop_s'] for one in all_rounds])} GFLOP/s. "
        f"{results['active_weights'] / 1e6:.0f} million weights per token; decoding "
        "one sequence reads of the best / of the usual bandwidth:",
        "",
        "| | MB per token | llama.cpp | one process | cluster |",
        "|---|---|---|---|---|",
    ]
    for form, rounds in results["rounds"].items():
        if not rounds:
            continue
        bits = BITS_PER_WEIGHT[form]
        cells = (
            " / ".join(
                bandwidth_share(rounds, who, results["active_weights"], bits, which)
                for which in ("read_gb_s", "usual_read_gb_s")
            )
            for who in ("peer", "engine", "cluster")
        )
        megabytes = results["active_weights"] * bits / 8e6
        lines.append(f"| {form} | {megabytes:.0f} | {' | '.join(cells)} |")
    if results["checks"]:
        lines += ["", "Logits of the two programs, same prompt:", ""]
        lines += [
            f"- {name}: relative rms difference {one['median_relative_rms']:.1g} "
            f"(median of {one['positions']} positions, largest "
            f"{one['max_relative_rms']:.1g}); largest difference "
            f"{one['max_difference']:.2g}; same best token in {one['same_argmax']}"
            for name, one in results["checks"].items()
        ]
    return "\n".join(lines) + "\n"
