"""Writes the model card and its picture from the results of evaluate.py."""

import argparse
import json
import string
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent


def shares(result: dict) -> np.ndarray:
    """Percent of a layer's routed copies per expert, [layers, experts]."""
    loads = np.array(result["tokens_per_expert"], dtype=float)
    return 100 * loads / loads.sum(axis=1, keepdims=True)


def imbalance(loads) -> np.ndarray:
    """max / mean tokens per expert, [layers]."""
    loads = np.array(loads, dtype=float)
    return loads.max(axis=-1) / loads.mean(axis=-1)


def load_table(result: dict) -> str:
    loads = np.array(result["tokens_per_expert"])
    lines = ["| layer | " + " | ".join(f"e{e}" for e in range(loads.shape[1]))
             + " | max / mean |",
             "|---:" * (loads.shape[1] + 2) + "|"]
    for layer, row in enumerate(loads):
        lines.append(f"| {layer} | " + " | ".join(f"{n:,}" for n in row)
                     + f" | {imbalance(row):.2f} |")
    return "\n".join(lines)


def idle_experts(result: dict) -> int:
    """Experts with less than a tenth of the mean load."""
    return int((shares(result) < 10 / shares(result).shape[1]).sum())


def comparison_table(results: dict) -> str:
    lines = ["| run | training tokens | perplexity per token | bits per byte "
             "| max / mean, worst layer | max / mean, mean of layers "
             "| experts under a tenth of the mean |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    names = dict(final="final model (aux 0.01)",
                 balanced="same run, snapshot (aux 0.01)",
                 collapse="aux 0")
    for key, name in names.items():
        r = results[key]
        worst = imbalance(r["tokens_per_expert"])
        total = np.array(r["tokens_per_expert"]).size
        lines.append(
            f"| {name} | {r['trained_tokens']:,} | {r['perplexity']:.2f} | "
            f"{r['bits_per_byte']:.3f} | {worst.max():.2f} | "
            f"{worst.mean():.2f} | {idle_experts(r)} of {total} |")
    return "\n".join(lines)


def read_log(path: Path, until: int):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r for r in rows if r["tokens"] <= until]
    return (np.array([r["tokens"] for r in rows]) / 1e6,
            np.array([imbalance(r["loads"]).mean() for r in rows]))


def draw(results: dict, work: Path, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.3), layout="constrained")
    top = max(shares(results[k]).max() for k in ("balanced", "collapse"))
    for axis, key, title in ((axes[0], "balanced", "aux 0.01"),
                             (axes[1], "collapse", "aux 0")):
        share = shares(results[key])
        image = axis.imshow(share, cmap="viridis", vmin=0, vmax=top,
                            aspect="auto")
        for (layer, expert), value in np.ndenumerate(share):
            axis.text(expert, layer, f"{value:.0f}", ha="center", va="center",
                      fontsize=8,
                      color="white" if value < 0.6 * top else "black")
        tokens = results[key]["trained_tokens"] / 1e6
        axis.set_title(f"{title}, {tokens:.1f} M tokens")
        axis.set_xlabel("expert")
        axis.set_ylabel("layer")
    figure.colorbar(image, ax=axes[1], label="% of routed copies")
    until = results["collapse"]["trained_tokens"]
    for run, label in (("collapse", "aux 0"), ("main", "aux 0.01")):
        tokens, worst = read_log(work / run / "log.jsonl", until)
        axes[2].plot(tokens, worst, label=label, linewidth=1)
    axes[2].axhline(1, color="gray", linewidth=0.5)
    axes[2].set_xlabel("training tokens, millions")
    axes[2].set_ylabel("max / mean tokens per expert")
    axes[2].set_title("during training, mean of layers")
    axes[2].legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    draw(results, args.work, args.out / "expert-load.png")
    final = results["final"]
    with np.load(args.work / "train.npz") as data:
        text_tokens = len(data["ids"])
    change = 100 * (results["collapse"]["perplexity"]
                    / results["balanced"]["perplexity"] - 1)
    samples = "\n\n".join(
        "\n".join(f"> {line}" if line else ">" for line in s.split("\n"))
        for s in final["samples"])
    template = string.Template((HERE / "card_template.md").read_text())
    (args.out / "README.md").write_text(template.substitute(
        parameters=f"{final['parameters']:,}",
        trained_tokens=f"{final['trained_tokens']:,}",
        epochs=f"{final['trained_tokens'] / text_tokens:.1f}",
        text_tokens=f"{text_tokens:,}",
        perplexity=f"{final['perplexity']:.2f}",
        nats=f"{final['nats_per_token']:.3f}",
        bits_per_byte=f"{final['bits_per_byte']:.3f}",
        stories=final["stories"],
        scored_tokens=f"{final['scored_tokens']:,}",
        bytes=f"{final['bytes']:,}",
        compared_tokens=f"{results['collapse']['trained_tokens']:,}",
        comparison=comparison_table(results),
        collapse_top=f"{shares(results['collapse']).max():.0f}",
        balanced_top=f"{shares(results['balanced']).max():.0f}",
        perplexity_change=f"{change:+.1f}",
        final_loads=load_table(final),
        balanced_loads=load_table(results["balanced"]),
        collapse_loads=load_table(results["collapse"]),
        samples=samples))


if __name__ == "__main__":
    main()
