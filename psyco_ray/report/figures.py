"""Figures that live inside a page: no file beside it, and the same text for the same data."""

from __future__ import annotations

import io
from typing import Any

ROLES = ("rollouts", "scorers", "learners")
_DOING = {
    "sample": "tab:blue",
    "train": "tab:orange",
    "save": "tab:green",
    "sync": "tab:red",
    "evaluate": "tab:purple",
    "judge": "tab:brown",
}
"""What the driver does, in the colours of the figure of stages."""


def new(width: float = 6.4, height: float = 3.2) -> tuple[Any, Any]:
    """An empty figure and its axes, without the frame's upper and right lines.

    Args:
        width: inches; text keeps its size, so that a narrow figure stays readable on a phone.
        height: inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Any) -> str:
    """A figure as an SVG element that scales with the page; the same figure gives the same text."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "psyco_ray", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def timeline(iterations: dict[str, list[dict[str, Any]]]) -> str:
    """Who was at work when: for every iteration a row for each role and one for what the driver did.

    Args:
        iterations: the parts of each, as `psyco_ray.timeline` writes them, by its name.

    Returns:
        An SVG element as wide as a phone; nothing if there is no iteration.
    """
    if not iterations:
        return ""
    figure, axes = new(3.4, 0.7 + 0.82 * len(iterations))
    axes.spines[["left"]].set_visible(False)
    places: dict[float, str] = {}  # of the rows' names
    longest = max(sum(part["seconds"] for part in parts) for parts in iterations.values())
    for number, (name, parts) in enumerate(iterations.items()):
        top = -5.6 * number
        seconds = sum(part["seconds"] for part in parts)
        axes.text(0, top + 0.2, f"{name}: {seconds:.0f} s", fontsize=8, fontweight="bold")
        rows = {role: top - 1 - row for row, role in enumerate(("driver", *ROLES))}
        places |= {low + 0.4: role for role, low in rows.items()}
        began = 0.0
        for part in parts:
            if began:
                axes.plot([began, began], [rows[ROLES[-1]], top], color="#888888", linewidth=0.8, linestyle="--")
            for what, first, last in part["driver"]:
                axes.broken_barh([(began + first, last - first)], (rows["driver"], 0.8), color=_DOING[what])
            for role, busy in part["busy"].items():
                edges = [began + min(i * part["bin_s"], part["seconds"]) for i in range(len(busy) + 1)]
                heights = [rows[role] + 0.8 * min(1.0, of / max(1, part["actors"][role])) for of in busy]
                axes.stairs(heights, edges, baseline=rows[role], fill=True, color="#555555")
            began += part["seconds"]
        for role in ROLES:
            axes.plot([0, seconds], [rows[role]] * 2, color="#cccccc", linewidth=0.6)
            axes.text(1.02 * longest, rows[role] + 0.1, f"{100 * _busy_share(parts, role):.0f} %", fontsize=7)
    axes.set_yticks(list(places), list(places.values()), fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlim(0, 1.14 * longest)
    axes.set_ylim(-5.6 * len(iterations) + 1.4, 1.2)
    axes.set_xlabel("seconds", fontsize=8)
    done = [
        what for what in _DOING if any(row[0] == what for ps in iterations.values() for p in ps for row in p["driver"])
    ]
    handles = [axes.broken_barh([], (0, 0), color=_DOING[what], label=what) for what in done]
    figure.legend(handles=handles, loc="outside upper center", ncol=3, frameon=False, fontsize=7)
    return svg(figure)


def _busy_share(parts: list[dict[str, Any]], role: str) -> float:
    """Share of the time of a role's actors in which they worked."""
    worked = sum(sum(part["busy"].get(role, ())) * part["bin_s"] for part in parts)
    there = sum(part["seconds"] * part["actors"].get(role, 0) for part in parts)
    return min(1.0, worked / there) if there else 0.0
