"""The metrics of several workers as those of one router.

Counters and histograms are summed, those of workers that ended included, so that they never go
backwards. Gauges are summed over the workers that live, but for those that say the same in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels."""

# Every worker has the whole catalog. Whom it can reach is its own view: the mean of the views adds
# up to the number of endpoints, as neither sum nor maximum would. A guard's stop is its own too.
MEAN = frozenset({"aiflow_endpoints", "aiflow_split_share"})
MAX = frozenset(
    {
        "aiflow_endpoints_batch_unknown",
        "aiflow_endpoints_undescribed",
        "aiflow_identity_age_seconds",
        "aiflow_identity_jwks_refused",
        "aiflow_identity_keys",
        "aiflow_ledger_away",
        "aiflow_limits_routers",
        "aiflow_panic",
        "aiflow_policy_info",
        "aiflow_quotas_age_seconds",
        "aiflow_usage_age_seconds",
    }
)
# About one process; told apart by a label.
_PROCESS = "process_"


@dataclass(slots=True)
class Family:
    kind: str
    help: str
    samples: dict[Sample, float] = field(default_factory=dict)


Families = dict[str, Family]


def parsed(text: str) -> Families:
    return {
        metric.name: Family(
            metric.type,
            metric.documentation,
            {(item.name, tuple(item.labels.items())): item.value for item in metric.samples},
        )
        for metric in text_string_to_metric_families(text)
    }


def kept(total: Families, ended: Families) -> Families:
    """`total` and what a worker that ended had counted."""
    counted = {
        name: family
        for name, family in ended.items()
        if family.kind in ("counter", "histogram", "summary") and not name.startswith(_PROCESS)
    }
    return _summed([total, counted])


def merged(workers: Mapping[str, Families], *, total: Families, own: Families) -> bytes:
    """One text of them all.

    Args:
        workers: by the value of the label `worker`.
        total: what workers that ended had counted.
        own: the supervisor's; what it tells, no worker's gauge tells otherwise.
    """
    shared = [
        {name: family for name, family in families.items() if not name.startswith(_PROCESS)}
        for families in workers.values()
    ]
    whole = _summed([total, *shared])
    for name, family in whole.items():
        if family.kind == "gauge":
            _one_view(family, name, shared)
    labelled = {**workers, "supervisor": own}
    for worker, families in labelled.items():
        for name, family in families.items():
            if name.startswith(_PROCESS):
                _label(whole.setdefault(name, Family(family.kind, family.help)), family, worker)
            elif worker == "supervisor":
                if family.kind == "gauge":
                    whole[name] = family
                else:
                    whole = _summed([whole, {name: family}])
    return generate_latest(_Text(whole))


def told(
    living: Mapping[str, str], ended: Iterable[str], *, total: Families, own: str
) -> tuple[bytes, Families]:
    """What `merged` makes of these texts, and the new `total`, with those who have `ended`."""
    for text in ended:
        total = kept(total, parsed(text))
    workers = {worker: parsed(text) for worker, text in living.items()}
    return merged(workers, total=total, own=parsed(own)), total


def _summed(parts: Iterable[Families]) -> Families:
    whole: Families = {}
    for families in parts:
        for name, family in families.items():
            into = whole.setdefault(name, Family(family.kind, family.help))
            for sample, value in family.samples.items():
                into.samples[sample] = into.samples.get(sample, 0.0) + value
    return whole


def _one_view(family: Family, name: str, workers: list[Families]) -> None:
    """Replaces the sum where every worker says the same, or its view of it."""
    if name in MEAN:
        for sample in family.samples:
            family.samples[sample] /= max(1, len(workers))
    elif name in MAX:
        for sample in family.samples:
            family.samples[sample] = max(
                families[name].samples.get(sample, 0.0) for families in workers if name in families
            )


def _label(into: Family, family: Family, worker: str) -> None:
    for (sample, labels), value in family.samples.items():
        into.samples[sample, (*labels, ("worker", worker))] = value


class _Text(Collector):
    """What is merged, as prometheus_client writes a registry."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            metric = Metric(name, family.help, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
