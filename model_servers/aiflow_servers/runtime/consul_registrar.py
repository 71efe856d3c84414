"""Consul: a service instance at the agent of this machine, with two checks that must both pass.

The agent itself calls grpc.health.v1 of the endpoint, so an endpoint that hangs or says NOT_SERVING
is critical; and the endpoint's process says every third of a TTL that it lives, so one that was
killed is critical within the TTL and not only when the agent looks next. Whoever is critical for a
minute is removed by Consul.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk import consul_entry
from aiflow_sdk.consul import (
    DEFAULT_ADDRESS,
    Consul,
    ConsulAwayError,
    ConsulError,
    ConsulFailedError,
    ConsulMissingError,
    ConsulRefusedError,
    segment,
)
from aiflow_sdk.errors import BadInputError, UnavailableError

GRPC_INTERVAL_S = 5.0
GRPC_TIMEOUT_S = 2.0
# The shortest that Consul takes.
REMOVED_AFTER = "1m"

_REGISTER = "/v1/agent/service/register"

_PROTOCOLS: dict[int, consul_entry.Protocol] = {
    registry_pb2.PROTOCOL_OIP: "oip",
    registry_pb2.PROTOCOL_GRPC: "grpc",
}


class ConsulRegistrar:
    """Registers at a Consul agent.

    Args:
        consul: "http://host:port" of the agent; it must be the one of this machine, for it dials
            the endpoint's health.
        token_file: holds an ACL token with `service:write`; read anew when it changes.
        ttl_s: how long the endpoint stays fit without its process saying that it lives.
        grpc_health: False where the endpoint does not speak grpc.health.v1.

    Raises:
        BadInputError: `consul` is no such address.
    """

    def __init__(
        self,
        *,
        consul: str = DEFAULT_ADDRESS,
        token_file: Path | None = None,
        ttl_s: float = 3.0,
        grpc_health: bool = True,
    ) -> None:
        self._ttl_s = ttl_s
        self._grpc_health = grpc_health
        self._id = ""
        self._body: dict[str, Any] = {}
        self._was_away = False
        try:
            # A lost answer leaves time for two more tries.
            self._consul = Consul(consul, token_file=token_file, margin_s=ttl_s / 3)
        except ConsulRefusedError as error:
            raise BadInputError(str(error)) from error

    @property
    def address(self) -> str:
        return self._consul.address

    @property
    def caller(self) -> None:
        return None  # any router that asks any agent of the cluster

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self._consul:
            yield

    async def register(self, endpoint: registry_pb2.Endpoint, *, anew: bool) -> float:
        self._body = service(endpoint, ttl_s=self._ttl_s, grpc_health=self._grpc_health)
        self._id = self._body["ID"]
        with self._telling():
            if anew:
                # A process that was killed may have left this very address critical or in
                # maintenance.
                await self._register_afresh()
            else:
                await self._consul.put(_REGISTER, self._body)
                await self._consul.put(self._lives)
        return self._ttl_s / 3

    async def renew(self, *, draining: bool) -> float | None:
        with self._telling():
            try:
                if draining:
                    why = {"enable": "true", "reason": "the server is shutting down"}
                    await self._consul.put(self._at("maintenance"), params=why)
                await self._consul.put(self._lives)
                if self._was_away and not draining:
                    await self._fit_again()
            except (ConsulMissingError, ConsulFailedError):
                # Versions differ in how they say that they do not know a check.
                if await self._known():
                    raise
                return None
        return self._ttl_s / 3

    async def deregister(self) -> None:
        with self._telling():
            await self._take_out()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Raises what the client raises as the AiflowError that it stands for."""
        try:
            yield
        except ConsulError as error:
            if isinstance(error, ConsulAwayError):
                self._was_away = True
            raise UnavailableError(str(error), reason=f"CONSUL_{error.kind.upper()}") from error

    async def _register_afresh(self) -> None:
        """Registers so that all checks pass from the first moment.

        One that is only registered again keeps the status it has.
        """
        await self._take_out()
        await self._consul.put(_REGISTER, self._body)

    async def _take_out(self) -> None:
        # Where ACLs are on, Consul fails to deregister what it does not know.
        if await self._known():
            await self._consul.put(self._at("deregister"))

    async def _fit_again(self) -> None:
        """An agent that restarts has every check critical until it comes to look by itself."""
        try:
            await self._consul.get(f"/v1/agent/health/service/id/{segment(self._id)}", stale=False)
        except ConsulFailedError:  # how Consul answers of one that is critical
            await self._register_afresh()
        self._was_away = False

    async def _known(self) -> bool:
        """Raises ConsulError where Consul cannot be asked."""
        try:
            await self._consul.get(f"/v1/agent/service/{segment(self._id)}", stale=False)
        except ConsulMissingError:
            return False
        return True

    @property
    def _lives(self) -> str:
        return f"/v1/agent/check/pass/{segment(_ttl_check(self._id))}"

    def _at(self, action: str) -> str:
        return f"/v1/agent/service/{action}/{segment(self._id)}"


def service(
    endpoint: registry_pb2.Endpoint, *, ttl_s: float, grpc_health: bool = True
) -> dict[str, Any]:
    """The body of `PUT /v1/agent/service/register`. Raises BadInputError."""
    try:
        body = consul_entry.to_service(
            consul_entry.Entry(
                backend=endpoint.backend,
                address=endpoint.address,
                protocol=_PROTOCOLS[endpoint.protocol],
                models=tuple(dict.fromkeys(endpoint.models)),
                services=tuple(dict.fromkeys(endpoint.services)),
                weight=endpoint.weight or 1,
                zone=endpoint.zone,
                version=endpoint.version,
                device=endpoint.device,
            )
        )
    except consul_entry.EntryError as error:
        raise BadInputError(str(error)) from error
    # Who registers takes calls; without a status Consul would have it critical until the first
    # check. A check of each kind, for Consul takes no check of two.
    common = {"Status": "passing", "DeregisterCriticalServiceAfter": REMOVED_AFTER}
    checks: list[dict[str, Any]] = [
        {
            "CheckID": _ttl_check(body["ID"]),
            "Name": "the process lives",
            "TTL": f"{round(ttl_s * 1000)}ms",
            **common,
        }
    ]
    if grpc_health:
        checks.append(
            {
                "CheckID": f"{body['ID']}:grpc",
                "Name": "grpc.health.v1",
                "GRPC": endpoint.address,
                "Interval": f"{GRPC_INTERVAL_S:g}s",
                "Timeout": f"{GRPC_TIMEOUT_S:g}s",
                **common,
            }
        )
    return {**body, "Checks": checks}


def _ttl_check(identifier: str) -> str:
    return f"{identifier}:ttl"
