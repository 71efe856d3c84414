"""The drill as a picture: calls a second by who answered them, failures, and what was done when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from drill_traffic import FAILED, Traffic

mpl.use("Agg")  # There may be no screen.
from matplotlib import pyplot as plt

Event = tuple[float, str]


def draw(traffic: Traffic, events: Sequence[Event], path: Path) -> None:
    """Writes a PNG to `path`."""
    seconds = range(max(traffic.answered, default=0) + 1)
    models = sorted({name for seen in traffic.answered.values() for name in seen} - {FAILED})
    figure, axes = plt.subplots(figsize=(14, 6))
    rows = [[traffic.answered[second][name] for second in seconds] for name in models]
    axes.stackplot(list(seconds), rows, labels=models, alpha=0.8)
    failed = [traffic.answered[second][FAILED] for second in seconds]
    axes.plot(list(seconds), failed, color="red", linewidth=2, label=FAILED)
    top = max(map(sum, zip(*rows, strict=True)), default=1.0)
    for at_s, what in events:
        axes.axvline(at_s, color="black", linestyle=":", linewidth=1)
        axes.text(at_s, top * 1.04, what, rotation=40, rotation_mode="anchor", fontsize=9)
    axes.set_ylim(0, top * 1.8)
    axes.set_xlim(0, 1.06 * max(seconds))  # The last words need room.
    axes.set_xlabel("seconds")
    axes.set_ylabel("calls a second, by the model that answered")
    axes.set_title(f"{traffic.calls} calls, {len(traffic.failures)} failed", loc="left")
    axes.legend(loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
