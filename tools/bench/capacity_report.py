"""Table and picture of what capacity_bench has printed.

capacity_report.py RESULTS.jsonl FOLDER writes FOLDER/capacity.md and
FOLDER/capacity.svg. Nothing but the standard library.
"""
import json
import pathlib
import sys

COLOURS = {"drop": "#c0392b", "next_best": "#1f6fb4", "next_best,drop": "#2e8b57"}
DASHES = {"position": "", "weight": "6 3", "random": "2 3"}
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 300, 60, 40, 90


def read(path):
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    dropless = [r for r in rows if r["capacity_factor"] == 0]
    if len(dropless) != 1:
        raise SystemExit(f"{path}: {len(dropless)} rows without capacity factor")
    return dropless[0], [r for r in rows if r["capacity_factor"] != 0]


def share(row, what):
    copies = row["first_choice"] + row["next_best"] + row["dropped"]
    return row[what] / copies


def table(dropless, rows):
    has_speed = "tokens_per_second" in dropless
    lines = [
        "| fallback | refused by | factor | perplexity | against dropless "
        "| next best | dropped | busiest expert |"
        + (" tokens/s | speed |" if has_speed else ""),
        "|---" * (10 if has_speed else 8) + "|",
    ]
    for row in [dropless] + rows:
        is_dropless = row["capacity_factor"] == 0
        quality = row["perplexity"] / dropless["perplexity"] - 1
        speed = ""
        if has_speed:
            ratio = row["tokens_per_second"] / dropless["tokens_per_second"]
            speed = f" {row['tokens_per_second']:.0f} | {ratio:.2f}x |"
        lines.append(
            "| {} | {} | {} | {:.3f} | {:+.2%} | {:.1%} | {:.1%} | {:.2f} |".format(
                "-" if is_dropless else row["fallback"].replace(",", ", "),
                "-" if is_dropless else row["refuse"],
                "dropless" if is_dropless else f"{row['capacity_factor']:g}",
                row["perplexity"],
                quality,
                share(row, "next_best"),
                share(row, "dropped"),
                row["busiest_expert"],
            )
            + speed
        )
    return "\n".join(lines) + "\n"


class Panel:
    """One diagram: x is the capacity factor."""

    def __init__(self, index, title, factors, low, high):
        self.x0 = LEFT + index * (WIDTH + GAP)
        self.factors, self.low, self.high = factors, low, high
        self.out = [
            f'<text x="{self.x0 + WIDTH / 2}" y="{TOP - 14}" '
            f'text-anchor="middle" font-weight="bold">{title}</text>'
        ]
        for i in range(6):
            value = low + (high - low) * i / 5
            y = self.y(value)
            self.out.append(
                f'<line x1="{self.x0}" y1="{y:.1f}" x2="{self.x0 + WIDTH}" '
                f'y2="{y:.1f}" stroke="#ddd"/><text x="{self.x0 - 6}" '
                f'y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
            )
        for factor in factors:
            self.out.append(
                f'<text x="{self.x(factor):.1f}" y="{TOP + HEIGHT + 18}" '
                f'text-anchor="middle">{factor:g}</text>'
            )
        self.out.append(
            f'<text x="{self.x0 + WIDTH / 2}" y="{TOP + HEIGHT + 38}" '
            'text-anchor="middle">capacity factor</text>'
        )

    def x(self, factor):
        step = WIDTH / max(1, len(self.factors) - 1)
        return self.x0 + step * self.factors.index(factor)

    def y(self, value):
        value = min(max(value, self.low), self.high)
        return TOP + HEIGHT * (1 - (value - self.low) / (self.high - self.low))

    def curve(self, points, colour, dash):
        path = " ".join(f"{self.x(f):.1f},{self.y(v):.1f}" for f, v in points)
        self.out.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dash}"/>'
        )

    def level(self, value):
        y = self.y(value)
        self.out.append(
            f'<line x1="{self.x0}" y1="{y:.1f}" x2="{self.x0 + WIDTH}" '
            f'y2="{y:.1f}" stroke="#000" stroke-dasharray="1 3"/>'
        )


def picture(dropless, rows):
    factors = sorted({r["capacity_factor"] for r in rows})
    values = [lambda r: r["perplexity"], lambda r: r["busiest_expert"]]
    titles = ["held-out perplexity", "busiest expert (mean of dropless = 1)"]
    if "tokens_per_second" in dropless:
        values.append(
            lambda r: r["tokens_per_second"] / dropless["tokens_per_second"]
        )
        titles.append("speed under the skewed load (dropless = 1)")
    out = []
    for i, (title, value) in enumerate(zip(titles, values)):
        everything = [value(r) for r in rows + [dropless]]
        low = min(everything)
        # A collapse is off the scale: cut at the upper edge.
        high = min(max(everything), 2 * value(dropless))
        margin = 0.05 * (high - low) or 0.05
        panel = Panel(i, title, factors, low - margin, high + margin)
        panel.level(value(dropless))
        for fallback, colour in COLOURS.items():
            for refuse, dash in DASHES.items():
                points = sorted(
                    (r["capacity_factor"], value(r))
                    for r in rows
                    if r["fallback"] == fallback and r["refuse"] == refuse
                )
                if points:
                    panel.curve(points, colour, dash)
        out += panel.out
    x = LEFT
    y = TOP + HEIGHT + 66
    for fallback, colour in COLOURS.items():
        out.append(
            f'<line x1="{x}" y1="{y}" x2="{x + 30}" y2="{y}" '
            f'stroke="{colour}" stroke-width="3"/>'
            f'<text x="{x + 36}" y="{y + 4}">{fallback}</text>'
        )
        x += 150
    for refuse, dash in DASHES.items():
        out.append(
            f'<line x1="{x}" y1="{y}" x2="{x + 40}" y2="{y}" stroke="#333" '
            f'stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="{x + 46}" y="{y + 4}">refused by {refuse}</text>'
        )
        x += 190
    out.append(
        f'<line x1="{x}" y1="{y}" x2="{x + 40}" y2="{y}" stroke="#000" '
        'stroke-dasharray="1 3"/>'
        f'<text x="{x + 46}" y="{y + 4}">dropless</text>'
    )
    width = max(x + 110, LEFT + len(values) * (WIDTH + GAP))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{y + 24}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>'
        + "".join(out)
        + "</svg>\n"
    )


def main():
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    dropless, rows = read(sys.argv[1])
    folder = pathlib.Path(sys.argv[2])
    title = "# Capacity against quality: every setting\n\n"
    text = f"{dropless['tokens']} predicted tokens of held-out text.\n\n"
    (folder / "capacity.md").write_text(
        title + text + table(dropless, rows), encoding="utf-8"
    )
    (folder / "capacity.svg").write_text(picture(dropless, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
