"""Waits of a simulation by finding class, and their picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.backtest.simulation import Department, Policy, ReadStudy
from shared.errors import OsteonError

# Okabe and Ito's colours, which the colour-blind can distinguish; in print the markers differ
LOOKS = {Policy.ARRIVAL: ("#0072B2", "o"), Policy.PROBABILITY: ("#D55E00", "s"), Policy.DUE: ("#009E73", "D")}
MIN_SHOWN = 0.1  # minutes: the left edge of the plot's logarithmic scale


@dataclass(frozen=True)
class Figures:
    """Waits of one class under one policy, in minutes."""

    policy: Policy
    kind: str
    studies: int
    mean: float
    p95: float
    maximum: float
    over: float  # share that waited longer than their class and priority allow


def figures(
    policy: Policy,
    readings: Sequence[ReadStudy],
    department: Department,
    only: Callable[[ReadStudy], bool] = lambda _: True,
) -> list[Figures]:
    """Summarise the waits of a simulation.

    Args:
        policy: by which the studies were read.
        readings: what the simulation returned.
        department: whose turnaround targets hold.
        only: which readings count, e.g. those after a first day in which the list fills.

    Returns:
        One for each class that is there, in the order of the turnaround targets, then all together, then real
        fractures.
    """
    counted = [reading for reading in readings if only(reading)]
    groups = {kind: [each for each in counted if each.arrival.kind == kind] for kind in department.targets}
    groups["all"] = counted
    groups["fractured"] = [each for each in counted if each.arrival.fracture]
    return [_figures(policy, kind, group, department) for kind, group in groups.items() if group]


def _figures(policy: Policy, kind: str, readings: Sequence[ReadStudy], department: Department) -> Figures:
    waits = sorted(reading.wait for reading in readings)
    over = sum(
        each.wait > department.targets[each.arrival.kind][each.arrival.priority] for each in readings
    ) / len(readings)  # fmt: skip
    p95 = waits[math.ceil(0.95 * len(waits)) - 1]  # the nearest rank
    return Figures(policy, kind, len(waits), sum(waits) / len(waits), p95, waits[-1], over)


def plot(path: Path, rows: Sequence[Figures], title: str) -> None:
    """Draw a line from mean to maximum for each class and policy.

    Args:
        path: of the picture; its ending decides the format, and its folder is made.
        rows: of one or more policies.
        title: stands above the plot.

    Raises:
        OsteonError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        raise OsteonError(
            "Plots need matplotlib: pip install 'osteon[training]'; without --plot all figures are printed"
        ) from None
    kinds = list(dict.fromkeys(row.kind for row in rows))
    policies = list(dict.fromkeys(row.policy for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.72 * len(kinds)), layout="constrained")
    for row in rows:
        colour, marker = LOOKS[row.policy]
        y = kinds.index(row.kind) + (policies.index(row.policy) - (len(policies) - 1) / 2) * 0.24
        mean, p95, maximum = (max(MIN_SHOWN, value) for value in (row.mean, row.p95, row.maximum))
        axes.plot([mean, maximum], [y, y], color=colour, linewidth=1.2)
        axes.plot([mean], [y], marker, color=colour, markersize=6)
        axes.plot([p95], [y], marker, color=colour, markersize=6, markerfacecolor="white")
        axes.plot([maximum], [y], "|", color=colour, markersize=11, markeredgewidth=2.5)
    counts = {row.kind: row.studies for row in rows}
    axes.set_yticks(range(len(kinds)), [f"{kind} ({counts[kind]:,})" for kind in kinds])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=min(0.8, 0.8 * min(max(MIN_SHOWN, row.mean) for row in rows)))
    marks = [mark for mark in (0.1, 1, 10, 60, 240, 1440, 10080) if mark <= 2 * max(row.maximum for row in rows)]
    words = {0.1: "6 s", 1: "1 min", 10: "10 min", 60: "1 h", 240: "4 h", 1440: "1 day", 10080: "1 week"}
    axes.set_xticks(marks, [words[mark] for mark in marks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#cccccc", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("wait until reading starts: filled mark mean, open mark 95th percentile, bar maximum")
    axes.set_title(title, loc="left", fontsize=10)
    handles = [
        axes.plot([], [], LOOKS[policy][1], color=LOOKS[policy][0], linestyle="-", label=policy.value)[0]
        for policy in policies
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
