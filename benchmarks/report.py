"""How every benchmark reports: a table for people, and JSON in .cache/bench for scripts."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "bench"


def write(name: str, figures: Mapping[str, Any], *, wanted: Mapping[str, str]) -> None:
    """Prints `figures` beside what is `wanted` of them, and writes .cache/bench/`name`.json."""
    table = Table(title=name, title_justify="left")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    table.add_column("wanted", justify="right")
    for key, value in figures.items():
        if isinstance(value, int | float):
            table.add_row(
                key, f"{value:.3g}" if value < 100 else f"{value:.0f}", wanted.get(key, "")
            )
    Console().print(table)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    path.write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n")
    Console().print(f"written to {path.relative_to(FOLDER.parent.parent)}")
