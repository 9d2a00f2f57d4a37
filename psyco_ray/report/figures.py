"""Figures inside a page: SVG elements that follow the page's colors, identical for identical data.

Figures are drawn as wide as a phone, so that their text stays readable there. Colors of this module become CSS
variables of ``base.html`` (`currentColor`, ``--series-1`` …), which have values for light and for dark pages.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

SERIES = ("#1f6375", "#b5482a", "#7a5ea8", "#4f7a22", "#b03060", "#8a6d1f", "#3b6fd4", "#666666")
"""Colors of up to eight curves; a ninth starts over."""

TEXT = "#000000"
MUTED = "#808080"
GRID = "#cccccc"
PAGE = "#ffffff"
NEUTRAL = "#b8b3a2"  # ties

STAGE_COLORS = dict(zip(("sample", "train", "save", "sync", "evaluate", "judge"), SERIES, strict=False))
"""Colors of what the driver does, by the stage's name."""

ROLES = ("rollouts", "scorers", "learners")
CLIENTS = "clients"
"""The role of simulated clients, which few runs have."""

_VARIABLES = {
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)},
    TEXT: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAGE: "var(--page)",
    NEUTRAL: "var(--neutral)",
}
_MARKERS = "osD^vPX*"
_FONT = 8  # points

Interval = Sequence[float]
"""Lower and upper bound."""


def new(width: float = 3.6, height: float = 2.8) -> tuple[Any, Any]:
    """An empty figure and its axes, without the frame's upper and right lines.

    Args:
        width: inches.
        height: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": _FONT, "axes.facecolor": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(figure: Any, columns: int, handles: Sequence[Any] | None = None) -> None:
    """Put the legend above the axes, where it hides no data."""
    extra = {} if handles is None else {"handles": handles}
    figure.legend(loc="outside upper center", ncol=columns, frameon=False, fontsize=_FONT, **extra)


def curve(
    axes: Any, steps: Sequence[float], values: Sequence[float], intervals: Sequence[Interval], number: int
) -> None:
    """Draw values by optimizer step, with error bars.

    Args:
        axes: of `new`.
        steps: the horizontal axis.
        values: one for each step.
        intervals: one for each value, on the same scale; without any no bars are drawn.
        number: of the curve in its figure, from 0; it decides color and marker.
    """
    errors = [[abs(bound - value) for bound in interval] for value, interval in zip(values, intervals, strict=False)]
    axes.errorbar(
        steps,
        values,
        yerr=list(zip(*errors, strict=True)) or None,
        color=SERIES[number % len(SERIES)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4,
        capsize=2,
        linewidth=1.3,
        elinewidth=0.8,
    )
    axes.set_xlabel("optimizer step")


def win_rates(curves: Mapping[str, Sequence[Mapping[str, Any]]], opponent: str, setting: str) -> str:
    """Win rates of checkpoints against an opponent, as in figure 4 of the paper.

    Args:
        curves: by name; points with `steps`, `rate` and `wilson95`.
        opponent: its name.
        setting: title of the variant.
    """
    figure, axes = new()
    for number, points in enumerate(curves.values()):
        rates = [100 * point["rate"] for point in points]
        intervals = [tuple(100 * bound for bound in point["wilson95"]) for point in points]
        curve(axes, [point["steps"] for point in points], rates, intervals, number)
    axes.set_ylabel(literal(f"win rate against {opponent} (%)", 40))
    axes.axhline(50, color=MUTED, linewidth=0.8, linestyle="--")
    ends = "; ".join(
        f"{name}: from {100 * points[0]['rate']:.1f} to {100 * points[-1]['rate']:.1f}"
        for name, points in curves.items()
    )
    return svg(figure, f"Win rate against {opponent} by optimizer step, {setting}. {ends}.")


def by_turn(curves: Mapping[str, Sequence[Mapping[str, Any]]], opponent: str, what: str) -> str:
    """Win rates against an opponent by turn of a conversation.

    Args:
        curves: by name; points with the title of the `turn`, `rate` and `wilson95`.
        opponent: its name.
        what: the setting of speeches, or dialogues.
    """
    figure, axes = new()
    titles = list(dict.fromkeys(point["turn"] for points in curves.values() for point in points))
    for number, points in enumerate(curves.values()):
        rates = [100 * point["rate"] for point in points]
        intervals = [tuple(100 * bound for bound in point["wilson95"]) for point in points]
        beside = 0.08 * (number - (len(curves) - 1) / 2)  # so that bars do not cover each other
        places = [titles.index(point["turn"]) + beside for point in points]
        curve(axes, places, rates, intervals, number)
    axes.set_xticks(range(len(titles)), titles)
    axes.set_xlim(-0.4, len(titles) - 0.6)
    axes.set_xlabel("turn")
    axes.set_ylabel(literal(f"win rate against {opponent} (%)", 40))
    axes.axhline(50, color=MUTED, linewidth=0.8, linestyle="--")
    described = "; ".join(
        f"{name}: " + ", ".join(f"turn {point['turn']} {100 * point['rate']:.1f}" for point in points)
        for name, points in curves.items()
    )
    return svg(figure, f"Win rate against {opponent} by turn, {what}, in per cent. {described}.")


def literal(text: str, length: int) -> str:
    """Text that matplotlib draws as it is, shortened to `length` characters."""
    return (text if len(text) <= length else f"{text[: length - 1]}…").replace("$", r"\$")


def svg(figure: Any, description: str) -> str:
    """A figure as an SVG element that scales with the page.

    Args:
        figure: of `new`, drawn in colors of this module.
        description: what a screen reader says instead of the drawing.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "psyco_ray", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLES[match[0]], text)
    text = _scope_ids(text, hashlib.sha256((description + text).encode()).hexdigest()[:8])
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def _scope_ids(text: str, scope: str) -> str:
    """Drop ids that nothing refers to, and make the others unique within a page of several figures."""
    referenced = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{scope}-{match[1]}"' if match[1] in referenced else "", text)
    return re.sub(r"((?:href=\"|url\()#)", rf"\g<1>{scope}-", text)


def timeline(iterations: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Utilization over time: for every iteration a row for the driver's stages and one for each role's busy actors.

    Args:
        iterations: by the iteration's title the parts of its timeline, as `psyco_ray.run.timeline` records them; a
            resumed iteration has several parts.

    Returns:
        An SVG element; empty without iterations.
    """
    if not iterations:
        return ""
    roles = _roles(iterations)
    figure, axes = new(3.4, 0.7 + (0.1 + 0.18 * (1 + len(roles))) * len(iterations))
    height = 2.6 + len(roles)
    axes.spines[["left"]].set_visible(False)
    longest = max(_seconds(parts) for parts in iterations.values())
    row_names: dict[float, str] = {}
    for number, (title, parts) in enumerate(iterations.items()):
        row_names |= _draw_iteration(axes, -height * number, title, parts, longest, roles)
    axes.set_yticks(list(row_names), list(row_names.values()), fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlim(0, 1.14 * longest)
    axes.set_ylim(-height * len(iterations) + 1.4, 1.2)
    axes.set_xlabel("time (s)", fontsize=_FONT)
    drawn = {stage for parts in iterations.values() for part in parts for stage, _, _ in part["driver"]}
    handles = [axes.broken_barh([], (0, 0), color=STAGE_COLORS[s], label=s) for s in STAGE_COLORS if s in drawn]
    legend(figure, 3, handles)
    return svg(figure, f"Utilization over time. {_describe(iterations)}")


def _draw_iteration(
    axes: Any, top: float, title: str, parts: Sequence[Mapping[str, Any]], longest: float, roles: Sequence[str]
) -> dict[float, str]:
    """Draw the rows of one iteration below `top`; return the names of the rows by their height."""
    seconds = _seconds(parts)
    axes.text(0, top + 0.2, f"{title}: {seconds:.0f} s", fontsize=_FONT, fontweight="bold")
    rows = {role: top - 1 - row for row, role in enumerate(("driver", *roles))}
    start = 0.0
    for part in parts:
        if start:
            axes.plot([start, start], [rows[roles[-1]], top], color=MUTED, linewidth=0.8, linestyle="--")
        # a save runs beside other stages; the shorter of two spans is drawn above the longer
        for stage, begin, end in sorted(part["driver"], key=lambda span: span[1] - span[2]):
            axes.broken_barh([(start + begin, end - begin)], (rows["driver"], 0.8), color=STAGE_COLORS[stage])
        for role, busy in part["busy"].items():
            edges = [start + min(i * part["bin_s"], part["seconds"]) for i in range(len(busy) + 1)]
            heights = [rows[role] + 0.8 * min(1.0, actors / max(1, part["actors"][role])) for actors in busy]
            axes.stairs(heights, edges, baseline=rows[role], fill=True, color=MUTED)
        start += part["seconds"]
    for role in roles:
        axes.plot([0, seconds], [rows[role]] * 2, color=GRID, linewidth=0.6)
        axes.text(1.02 * longest, rows[role] + 0.1, f"{100 * busy_share(parts, role):.0f} %", fontsize=7)
    return {height + 0.4: role for role, height in rows.items()}


def _roles(iterations: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """The roles of a run's actors."""
    has_clients = any(CLIENTS in part["actors"] for parts in iterations.values() for part in parts)
    return (*ROLES, CLIENTS) if has_clients else ROLES


def busy_share(parts: Sequence[Mapping[str, Any]], role: str) -> float:
    """Share of the actor-seconds of a role that were busy; 0 without actors."""
    busy = sum(sum(part["busy"].get(role, ())) * part["bin_s"] for part in parts)
    available = sum(part["seconds"] * part["actors"].get(role, 0) for part in parts)
    return min(1.0, busy / available) if available else 0.0


def _seconds(parts: Sequence[Mapping[str, Any]]) -> float:
    return sum(part["seconds"] for part in parts)


def _describe(iterations: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Length and busy shares of every iteration, as a sentence each."""
    return " ".join(
        f"{title}: {_seconds(parts):.0f} seconds, busy share of "
        + ", ".join(f"{role} {100 * busy_share(parts, role):.0f} %" for role in _roles(iterations))
        + "."
        for title, parts in iterations.items()
    )
