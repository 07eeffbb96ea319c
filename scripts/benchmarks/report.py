"""Report: figures as a Markdown table, with the ratio to ours, or to the floor where ours was not run."""

from __future__ import annotations

from benchmarks.measure import Figure

OURS = "this project"
FLOOR = "bare loop"


def table(figures: list[Figure]) -> str:
    """Return the table, figures in the order of their first appearance."""
    lines = ["| figure | who | n | p50 | p99 | unit | ratio | remark |", "|---|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(figure.figure for figure in figures):
        group = [figure for figure in figures if figure.figure == name]
        base = next((f for who in (OURS, FLOOR) for f in group if f.who == who and f.samples), None)
        for figure in group:
            p50, p99 = figure.p50, figure.p99
            ratio = f"{p50 / base.p50:.1f} x {base.who}" if p50 is not None and base is not None and base.p50 else ""
            lines.append(
                f"| {name} | {figure.who} | {len(figure.samples) or ''} | {_number(p50)} | "
                f"{_number(p99) if len(figure.samples) >= 20 else ''} | {figure.unit} | {ratio} | {figure.remark} |"
            )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")
