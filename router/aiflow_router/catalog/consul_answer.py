"""What Consul answers, read into what the catalog holds: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiflow_router.catalog.consul_health import Check, state_of
from aiflow_router.catalog.endpoint import Endpoint, Key, Protocol
from aiflow_router.catalog.fields import endpoint_problem
from aiflow_router.catalog.snapshot import Entry
from aiflow_sdk.consul import ConsulForbiddenError, ConsulRefusedError
from aiflow_sdk.consul_entry import TAG, EntryError, from_service

Parsed = tuple[Mapping[str, Any], str, Endpoint]
"""A service as Consul gave it, its node's address, and what was read of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """The endpoints of a backend.

    Attributes:
        entries: by key.
        problems: why an instance is left out, by its id.
        parsed: to be given with the next answer: what is still the same is not read again.
    """

    entries: Mapping[Key, Entry] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    parsed: Mapping[str, Parsed] = field(default_factory=dict)


def backends(body: Any) -> frozenset[str]:
    """Ours among the services, of an answer of `/v1/catalog/services`.

    Raises ConsulForbiddenError where there is no service at all. Consul lists itself as one, so it
    has hidden them: it answers who has no right to read with an empty list and not with an error.
    """
    if not isinstance(body, dict) or not all(isinstance(tags, list) for tags in body.values()):
        raise ConsulRefusedError("the list of services is none; is this Consul's HTTP address?")
    if not body:
        raise ConsulForbiddenError(
            "Consul lists no service at all, not even itself: give the token in token_file the "
            'right to read services and nodes (service_prefix "" and node_prefix "", read)'
        )
    return frozenset(name for name, tags in body.items() if TAG in tags)


def instances(body: Any, *, parsed: Mapping[str, Parsed]) -> Instances:
    """The endpoints in an answer of `/v1/health/service/NAME`. Raises ConsulRefusedError."""
    entries: dict[Key, Entry] = {}
    problems: dict[str, str] = {}
    read: dict[str, Parsed] = {}
    try:
        for item in body or ():
            service, node = item["Service"], item["Node"]
            # Ids are unique on a node only.
            name = f"{node['Node']}/{service['ID']}"
            try:
                read[name] = _parsed(service, node["Address"], parsed.get(name))
            except EntryError as error:
                problems[name] = str(error)
                continue
            entry = Entry(
                endpoint=read[name][2],
                state=state_of(service["ID"], _checks(item["Checks"])),
            )
            _add(entries, entry)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConsulRefusedError(
            f"the list of a service's instances is none ({error!r}); is this Consul's HTTP address?"
        ) from None
    return Instances(entries=entries, problems=problems, parsed=read)


def _add(entries: dict[Key, Entry], entry: Entry) -> None:
    """Where two instances are one address, as after a move to another node, the fitter counts."""
    other = entries.get(entry.endpoint.key)
    if other is None or entry.state < other.state:
        entries[entry.endpoint.key] = entry


def _parsed(service: Mapping[str, Any], address: str, before: Parsed | None) -> Parsed:
    if before is not None and before[0] == service and before[1] == address:
        return before
    found = from_service(service, node_address=address)
    endpoint = Endpoint(
        backend=found.backend,
        address=found.address,
        protocol=Protocol.OIP if found.protocol == "oip" else Protocol.GRPC,
        models=found.models,
        services=found.services,
        weight=found.weight,
        zone=found.zone,
        version=found.version,
        device=found.device,
    )
    if wrong := endpoint_problem(endpoint):
        raise EntryError(wrong)
    return service, address, endpoint


def _checks(checks: Sequence[Mapping[str, Any]]) -> list[Check]:
    return [
        Check(id=item["CheckID"], status=item["Status"], service_id=item.get("ServiceID", ""))
        for item in checks
    ]
