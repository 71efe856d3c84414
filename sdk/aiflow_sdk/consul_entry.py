"""An endpoint as Consul holds it: written by servers, read by routers. Pure functions both ways.

One Consul service is one backend, one instance of it is one endpoint:

    Name      the backend                      ID    "backend@address"
    Address, Port                              Weights.Passing and .Warning: the weight
    Meta      aiflow: "1", protocol, zone, version, device
    Tags      "aiflow", "model=NAME"..., "service=NAME"...

Names go into tags because Consul limits a Meta value to 512 bytes and does not limit tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Protocol = Literal["oip", "grpc"]

# The tag of every service that is ours, and the version of what is written here.
TAG = "aiflow"
SCHEMA = "1"

MAX_META_BYTES = 512
MAX_WEIGHT = 1000
# The name under which the servers of Consul themselves are listed.
OWN_SERVICE = "consul"

_BACKEND = re.compile(r"[a-zA-Z0-9._-]{1,128}")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]+)")
_NAME = re.compile(r"[!-~]{1,256}")


class EntryError(ValueError):
    """Consul cannot hold this endpoint, or holds something that is not one; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a server says of itself.

    Attributes:
        backend: name of the group of endpoints that serve the same.
        address: "host:port" or "[v6]:port".
        models: each once, as are services.
        weight: relative share of calls, 1 to 1000.
        zone: failure zone.
        version: of the server, for people.
        device: what it computes on, such as "cpu" or "gpu:0".
    """

    backend: str
    address: str
    protocol: Protocol
    models: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    weight: int = 1
    zone: str = ""
    version: str = ""
    device: str = ""

    @property
    def id(self) -> str:
        """Of the service's instance in Consul: registering it again replaces it."""
        return f"{self.backend}@{self.address}"


def to_service(entry: Entry) -> dict[str, Any]:
    """The body of `PUT /v1/agent/service/register`, without a check. Raises EntryError."""
    problems = [f"{field}: {why}" for field, why in _problems(entry)]
    if problems:
        raise EntryError(f"Consul cannot hold {entry.id[:256]}: {'; '.join(problems)}")
    match = _ADDRESS.fullmatch(entry.address)
    assert match is not None  # noqa: S101 - looked at above
    return {
        "Name": entry.backend,
        "ID": entry.id,
        "Address": match["v6"] or match["host"],
        "Port": int(match["port"]),
        # Who only warns takes calls like the others.
        "Weights": {"Passing": entry.weight, "Warning": entry.weight},
        "Meta": {
            "aiflow": SCHEMA,
            "protocol": entry.protocol,
            "zone": entry.zone,
            "version": entry.version,
            "device": entry.device,
        },
        "Tags": [
            TAG,
            *(f"model={name}" for name in entry.models),
            *(f"service={name}" for name in entry.services),
        ],
    }


def from_service(service: Mapping[str, Any], *, node_address: str = "") -> Entry:
    """The entry in the `Service` part of an answer of `/v1/health/service/NAME`.

    Args:
        service: as Consul gives it.
        node_address: taken where the service has none of its own.

    Raises EntryError.
    """
    try:
        return _read(service, node_address)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, EntryError):
            raise
        raise EntryError(f"this service is not as AIFlow writes them: {error!r}") from None


def _read(service: Mapping[str, Any], node_address: str) -> Entry:
    meta: Mapping[str, str] = service.get("Meta") or {}
    if meta.get("aiflow") != SCHEMA:
        raise EntryError(
            f'its Meta has aiflow: "{meta.get("aiflow", "")}" and this version reads "{SCHEMA}"'
        )
    protocol = meta.get("protocol", "")
    if protocol not in get_args(Protocol):
        raise EntryError(f'its Meta has protocol: "{protocol}" and must have oip or grpc')
    host = service.get("Address") or node_address
    port = int(service["Port"])
    tags: list[str] = service.get("Tags") or []
    weights: Mapping[str, int] = service.get("Weights") or {}
    return Entry(
        backend=service["Service"],
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        protocol="oip" if protocol == "oip" else "grpc",
        models=_tagged(tags, "model="),
        services=_tagged(tags, "service="),
        weight=int(weights.get("Passing", 1)),
        zone=meta.get("zone", ""),
        version=meta.get("version", ""),
        device=meta.get("device", ""),
    )


def _tagged(tags: list[str], prefix: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)))


def _problems(entry: Entry) -> Iterator[tuple[str, str]]:
    if not _BACKEND.fullmatch(entry.backend):
        yield "backend", "must be 1 to 128 characters of [a-zA-Z0-9._-]"
    elif entry.backend == OWN_SERVICE:
        yield "backend", '"consul" is the name of Consul\'s own servers; take another one'
    match = _ADDRESS.fullmatch(entry.address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        yield "address", 'must be "host:port" or "[v6]:port"'
    for field, names in (("models", entry.models), ("services", entry.services)):
        wrong = next((name for name in names if not _NAME.fullmatch(name)), None)
        if wrong is not None:
            yield field, f'"{wrong[:64]}" is not a name of 1 to 256 printable characters'
        elif len(set(names)) != len(names):
            yield field, "each name may be there once"
    if not 1 <= entry.weight <= MAX_WEIGHT:
        yield "weight", f"must be 1 to {MAX_WEIGHT}"
    for field in ("zone", "version", "device"):
        size = len(getattr(entry, field).encode(errors="surrogatepass"))
        if size > MAX_META_BYTES:
            yield field, f"has {size} bytes, and Consul takes {MAX_META_BYTES} in a Meta value"
