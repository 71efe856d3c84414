"""What limits cost and how exact they are, how fair waiting is, and whether the ledger adds up.

    make bench-limits

About seven minutes: a decision, four routers on one Redis, two tenants who wait for the same, in
virtual time and at a real router, a start with 100,000 keys, and a ledger whose routers and
databases die under load. Each part is a program of its own: limits_decision, limits_redis,
fairness, fairness_router, identity, ledger.
"""

from __future__ import annotations

import asyncio

import fairness
import fairness_router
import identity
import ledger
import limits_decision
import limits_redis
import report

WANTED = {
    "decision_us_memory": "<= 10",
    **limits_redis.WANTED,
    **fairness.WANTED,
    **fairness_router.WANTED,
    **identity.WANTED,
    **ledger.WANTED,
}


def main() -> None:
    figures = {"decision_us_memory": asyncio.run(limits_decision.measured())}
    print("four routers on one Redis, for two minutes", flush=True)
    figures |= limits_redis.figures(seconds=60.0)
    print("two tenants who wait for the same", flush=True)
    figures |= fairness.figures()
    print("the same at a real router", flush=True)
    figures |= fairness_router.figures(seconds=24.0)
    print("a start with 100,000 keys", flush=True)
    figures |= asyncio.run(identity.figures())
    print("a ledger under load, while something dies", flush=True)
    figures |= ledger.figures()
    report.write("limits", figures, wanted=WANTED)


if __name__ == "__main__":
    main()
