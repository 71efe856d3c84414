"""What limits cost and how exact they are, how fair waiting is, and whether the ledger adds up.

    make bench-limits

About five minutes: a decision, four routers on one Redis, two tenants who wait for the same, a
start with 100,000 keys, and a ledger whose routers and databases die under load. Each part is a
program of its own: limits_decision, limits_redis, fairness, limits_keys, ledger.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import fairness
import ledger
import limits_decision
import limits_keys
import limits_redis
import report

WANTED = {
    "decision_us_memory": "<= 10",
    **limits_redis.WANTED,
    **fairness.WANTED,
    "start_100k_keys_s": "<= 5",
    **ledger.WANTED,
}


def main() -> None:
    figures = {"decision_us_memory": asyncio.run(limits_decision.measured())}
    print("four routers on one Redis, for two minutes", flush=True)
    figures |= limits_redis.figures(seconds=60.0)
    print("two tenants who wait for the same", flush=True)
    figures |= fairness.figures()
    print("a start with 100,000 keys", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures |= limits_keys.measured(Path(folder))
    print("a ledger under load, while something dies", flush=True)
    figures |= ledger.figures()
    report.write("limits", figures, wanted=WANTED)


if __name__ == "__main__":
    main()
