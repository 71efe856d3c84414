"""The whole mesh on this machine: router, Triton and CPU servers under one supervisor."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from aiflow_sdk._settings import DEFAULT_ROUTER, checked_address
from aiflow_sdk.client import Client
from aiflow_sdk.command import consul_agent
from aiflow_sdk.command.processes import Part, Say, StartError, Supervisor
from aiflow_sdk.errors import AiflowError, BadInputError

DEFAULT_HTTP = "127.0.0.1:7601"
DEFAULT_CONSUL = "http://127.0.0.1:8500"
Discovery = Literal["embedded", "consul"]
SERVERS = ("imaging", "geometry")

_POLL_S = 0.1
# The first time it is fetched.
_AGENT_READY_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A mesh that is up."""

    router: str
    """gRPC address to call."""
    http: str
    """Address of /healthz, /readyz and /metrics."""
    models: tuple[str, ...]
    services: tuple[str, ...]
    supervisor: Supervisor
    consul: str = ""
    """URL of the Consul agent that all of it is registered at; empty where that is the router."""


@contextlib.contextmanager
def mesh(
    *,
    say: Say,
    config: Path | None = None,
    grpc: str | None = None,
    http: str | None = None,
    servers: Sequence[str] = SERVERS,
    triton: bool = True,
    discovery: Discovery | None = None,
    consul: str | None = None,
    triton_ready_s: float = 900.0,
    stop_s: float = 15.0,
    started: Callable[[Supervisor], None] = lambda _: None,
) -> Iterator[Mesh]:
    """Starts the mesh, waits until everything in it can be called, stops it at the end.

    Args:
        say: takes the name of a part and a line about it or from it.
        config: the router's aiflow.yaml; None leaves the choice to the router.
        grpc: the router's address; port 0 takes a free one, None what the configuration says.
        http: the same for health and metrics.
        servers: names for `aiflow serve`.
        triton: start Triton too; the first time it is installed, which takes minutes.
        discovery: where servers register: at the router, or at Consul; None leaves the choice to
            the router's configuration.
        consul: URL of the Consul agent; one is started where none answers on this machine, with
            port 0 at a free port.
        triton_ready_s: how long it may take.
        stop_s: what a part gets to end by itself.
        started: given the supervisor before the first part starts, to kill them all if need be.

    Raises:
        StartError: a port is taken, or a part did not get ready; nothing is left running.
    """
    if config is None and not Path("aiflow.yaml").exists():
        grpc, http = grpc or DEFAULT_ROUTER, http or DEFAULT_HTTP
    grpc = _claim(grpc, name="--grpc") if grpc is not None else None
    http = _claim(http, name="--http") if http is not None else None
    command = ["router"]
    for option, value in (("--config", config), ("--grpc", grpc), ("--http", http)):
        command += [option, str(value)] if value is not None else []
    with Supervisor(say=say, stop_s=stop_s) as supervisor:
        started(supervisor)
        if discovery is not None:
            command += ["--discovery", discovery]
        if discovery == "consul":
            command += ["--consul", _agent(supervisor, say, consul or DEFAULT_CONSUL)]
        said = supervisor.start([aiflow_part("router", command)])["router"]
        router, metrics = _reachable(said["grpc"]), _reachable(said["http"])
        say("router", f"ready: gRPC {router}, HTTP {metrics}")
        # Servers register where this router looks for them.
        agent = said.get("consul", "")
        environment = {"AIFLOW_ROUTER": router, "AIFLOW_DISCOVERY": "embedded"}
        if agent:
            environment |= {"AIFLOW_DISCOVERY": "consul", "AIFLOW_CONSUL": agent}
        parts = [aiflow_part(name, ["serve", name], environment) for name in servers]
        if triton:
            ready_s = triton_ready_s
            parts.insert(0, aiflow_part("triton", ["triton"], environment, ready_s=ready_s))
        say("up", f"starting {', '.join(part.name for part in parts) or 'nothing else'}")
        told = supervisor.start(parts)
        for name, ready in told.items():
            say(name, f"ready: {ready.get('grpc', '')}")
        models = tuple(told["triton"].get("models", ())) if triton else ()
        with Client(router) as client:
            wait_listed(client, models=models, backends=servers)
            endpoints = client.endpoints()
        yield Mesh(
            router=router,
            http=metrics,
            models=tuple(sorted({m for e in endpoints for m in e.models})),
            services=tuple(sorted({s for e in endpoints for s in e.services})),
            supervisor=supervisor,
            consul=agent,
        )


def _agent(supervisor: Supervisor, say: Say, url: str) -> str:
    """URL of the Consul agent at `url`, which is started where there is none."""
    from aiflow_sdk.consul import address_problem  # noqa: PLC0415 - it needs an extra

    if problem := address_problem(url):
        raise BadInputError(f"--consul: {problem}")
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    try:
        if port != 0 and consul_agent.answers(url.rstrip("/")):
            say("consul", f"uses the agent at {url}")
            return url.rstrip("/")
    except consul_agent.NoConsulError as error:
        raise StartError(str(error)) from error
    host = "127.0.0.1" if host == "localhost" else host
    if parts.scheme != "http" or not _is_loopback(host):
        raise StartError(
            f"no Consul answers at {url}: start it, or name another agent with --consul"
        )
    address = _claim(f"{host}:{80 if port is None else port}", name="--consul")
    command = [sys.executable, "-m", "aiflow_sdk.command.consul_agent", "--http", address]
    supervisor.start([Part(name="consul", command=command, ready_s=_AGENT_READY_S)])
    say("consul", f"ready: http://{address}/ui")
    return f"http://{address}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def aiflow_part(
    name: str,
    arguments: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    ready_s: float = 60.0,
) -> Part:
    """`aiflow ARGUMENTS...` with this interpreter, as a part."""
    return Part(
        name=name,
        command=[sys.executable, "-m", "aiflow_sdk.command", *arguments],
        environment={"PYTHONUNBUFFERED": "1", **(environment or {})},
        ready_s=ready_s,
    )


def wait_listed(
    client: Client, *, models: Sequence[str], backends: Sequence[str], timeout_s: float = 30.0
) -> None:
    """Returns once the router lists all of them as READY; raises StartError naming the rest."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            ready = [e for e in client.endpoints() if e.state == "READY"]
        except AiflowError as error:
            raise StartError(f"the router does not tell what it serves: {error}") from error
        listed = {m for e in ready for m in e.models} | {e.backend for e in ready}
        missing = sorted({*models, *backends} - listed)
        if not missing:
            return
        if time.monotonic() > deadline_s:
            raise StartError(
                f"not registered at {client.router} after {timeout_s:g} s: {', '.join(missing)}"
            )
        time.sleep(_POLL_S)


def _claim(address: str, *, name: str) -> str:
    """The address, which is free now, with its port chosen.

    The port is chosen here, not by the part, so that a restarted one comes back to it.
    """
    host, _, port = address.rpartition(":")
    if port != "0":
        checked_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except socket.gaierror as error:
            raise BadInputError(f"{name} {address}: {error.strerror}") from error
        except OSError as error:
            raise StartError(
                f"{address}: {(error.strerror or '').lower()}: stop what uses it, or "
                f"give another address with {name} (port 0 takes a free one)"
            ) from error
        return f"{host}:{probe.getsockname()[1]}"


def _reachable(address: str) -> str:
    """Where to connect to a server that listens on `address`, which may be every interface."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]", "::", "*", "") else address
