"""How long a person waits: `make demo` on a warm cache, from the command to pictures on disk."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

import report

ROOT = Path(__file__).resolve().parent.parent
LONGEST_S = 300.0


def main() -> None:
    subprocess.run(["make", "setup"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        demo = subprocess.Popen(["make", "demo", f"OUT={folder}"], cwd=ROOT)
        sheet = Path(folder) / "steps.json"
        while not sheet.exists() and demo.poll() is None and time.monotonic() - started < LONGEST_S:
            time.sleep(0.05)
        demo_s = time.monotonic() - started
        if demo.wait(timeout=LONGEST_S) != 0:
            raise SystemExit("the demo failed")
        whole_s = time.monotonic() - started
        steps = json.loads(sheet.read_text())
    figures = {"demo_s": demo_s, "with_stop_s": whole_s, "steps": steps}
    report.write("walk", figures, wanted={"demo_s": "<= 60"})


if __name__ == "__main__":
    main()
