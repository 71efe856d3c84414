"""What a scrape reads of the ledger and of usage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class Commits(Protocol):
    """See accounts.commits.Commits."""

    @property
    def waiting(self) -> int: ...

    @property
    def commits(self) -> int: ...

    @property
    def failed(self) -> int: ...

    @property
    def away(self) -> str: ...


class Ledger(Protocol):
    """See accounts.ledger.Ledger."""

    @property
    def counts(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def alerts(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def over(self) -> int: ...

    @property
    def commits(self) -> Commits: ...


class Usage(Protocol):
    """See accounts.usage.Usage."""

    @property
    def unwritten(self) -> int: ...

    def age_s(self) -> float: ...


class AccountsAtScrape:
    def __init__(self, ledger: Ledger, usage: Usage) -> None:
        self._ledger = ledger
        self._usage = usage

    def collect(self) -> Iterable[Metric]:
        ledger, usage = self._ledger, self._usage
        operations = CounterMetricFamily(
            "aiflow_ledger_operations",
            "What was done to the ledger, by what came of it.",
            labels=("operation", "result"),
        )
        for (operation, result), count in ledger.counts.items():
            operations.add_metric((operation, result), count)
        alerts = CounterMetricFamily(
            "aiflow_credit_alerts",
            "Accounts that ran low (a tenth left) or out (none).",
            labels=("tenant", "level"),
        )
        for (tenant, level), count in ledger.alerts.items():
            alerts.add_metric((tenant, level), count)
        return (
            operations,
            alerts,
            CounterMetricFamily(
                "aiflow_credits_over_hold",
                "Millionths of credits that calls took beyond what they held, and nobody paid.",
                value=ledger.over,
            ),
            CounterMetricFamily(
                "aiflow_ledger_commits",
                "Transactions of the ledger; each takes all that waits.",
                value=ledger.commits.commits,
            ),
            CounterMetricFamily(
                "aiflow_ledger_commits_failed",
                "Transactions of the ledger that failed, and are tried again.",
                value=ledger.commits.failed,
            ),
            GaugeMetricFamily(
                "aiflow_ledger_waiting",
                "Operations that wait for the ledger's next transaction.",
                value=ledger.commits.waiting,
            ),
            GaugeMetricFamily(
                "aiflow_ledger_away",
                "1 while the database of credits cannot be used.",
                value=bool(ledger.commits.away),
            ),
            GaugeMetricFamily(
                "aiflow_usage_unwritten", "Rows of usage to be written.", value=usage.unwritten
            ),
            GaugeMetricFamily(
                "aiflow_usage_age_seconds",
                "How long usage has been waiting to be written.",
                value=usage.age_s(),
            ),
        )
