"""What a field of an endpoint may hold, one rule for the registry and for aiflow.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aiflow_router.catalog.endpoint import Endpoint, Protocol

MAX_NAMES = 10_000
MAX_NAME = 256
MAX_WEIGHT = 1000
MAX_TEXT = 128

# What the router answers itself under the same names, so no endpoint can take it over.
OWN_SERVICES = frozenset(
    {
        "aiflow.admin.v1.ExplainService",
        "aiflow.admin.v1.PolicyService",
        "aiflow.admin.v1.TenancyService",
        "aiflow.admin.v1.UsageService",
        "aiflow.registry.v1.RegistryService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    }
)

_BACKEND = re.compile(r"[a-zA-Z0-9._-]{1,128}")
# Names travel in metadata and logs, so they are printable ASCII without spaces.
_MODEL = re.compile(r"[!-~]{1,256}")
_SERVICE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


def address_problem(address: str, *, lowest_port: int = 1) -> str:
    """What is wrong with a "host:port"; empty when nothing is."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return f'"{address[:128]}" is not "host:port" or "[v6]:port"'
    port = int(match["port"])
    if not lowest_port <= port <= 65535:
        return f"port {port} is not within {lowest_port} to 65535"
    return ""


def violations(  # noqa: C901, PLR0912 - one flat line a rule
    *,
    backend: str,
    address: str,
    protocol: int,
    models: Sequence[str],
    services: Sequence[str],
    weight: int,
    zone: str = "",
    version: str = "",
    device: str = "",
) -> Mapping[str, str]:
    """What is wrong with an endpoint, by field; a weight of 0 means 1."""
    wrong: dict[str, str] = {}
    if not _BACKEND.fullmatch(backend):
        wrong["backend"] = "must be 1 to 128 characters of [a-zA-Z0-9._-]"
    if problem := address_problem(address):
        wrong["address"] = problem
    if protocol not in (Protocol.OIP, Protocol.GRPC):
        wrong["protocol"] = "must be OIP or GRPC"
    if protocol == Protocol.OIP and not models:
        wrong["models"] = "an OIP endpoint serves at least one model"
    if protocol == Protocol.GRPC and not services:
        wrong["services"] = "a GRPC endpoint serves at least one service"
    if protocol == Protocol.GRPC and models:
        wrong["models"] = "models are served by OIP endpoints only"
    for field, names, pattern in (("models", models, _MODEL), ("services", services, _SERVICE)):
        if len(names) > MAX_NAMES:
            wrong[field] = f"has {len(names)} names, at most {MAX_NAMES} are allowed"
        elif problem := _names_problem(names, pattern):
            wrong[field] = problem
    if not 0 <= weight <= MAX_WEIGHT:
        wrong["weight"] = f"must be 1 to {MAX_WEIGHT}, or 0 for 1"
    if len(zone) > MAX_TEXT:
        wrong["zone"] = f"must be at most {MAX_TEXT} characters"
    # Written into terminals, where a control character could do anything.
    for field, text in (("version", version), ("device", device)):
        if len(text) > MAX_TEXT or not text.isprintable():
            wrong[field] = f"must be at most {MAX_TEXT} printable characters"
    return wrong


def endpoint_problem(endpoint: Endpoint) -> str:
    """What is wrong with an endpoint that came from outside; empty when nothing is."""
    wrong = violations(
        backend=endpoint.backend,
        address=endpoint.address,
        protocol=endpoint.protocol,
        models=endpoint.models,
        services=endpoint.services,
        weight=endpoint.weight,
        zone=endpoint.zone,
        version=endpoint.version,
        device=endpoint.device,
    )
    return "; ".join(f"{field}: {why}" for field, why in wrong.items())


def model_problem(name: str) -> str:
    """Why no endpoint can ever serve a model of this name; empty where one may."""
    return _names_problem((name,), _MODEL)


def service_problem(name: str) -> str:
    """Why no endpoint can ever serve this service; empty where one may."""
    return _names_problem((name,), _SERVICE)


def _names_problem(names: Sequence[str], pattern: re.Pattern[str]) -> str:
    # First all of them at the speed of C, for there may be thousands.
    sound = max(map(len, names), default=0) <= MAX_NAME and all(map(pattern.fullmatch, names))
    if sound and OWN_SERVICES.isdisjoint(names):
        return ""
    for name in names:
        if len(name) > MAX_NAME or not pattern.fullmatch(name):
            return f'"{name[:64]}" is not a name of 1 to {MAX_NAME} printable characters'
        if name in OWN_SERVICES:
            return f'"{name}" is answered by the router itself'
    return ""
