"""Any bytes at the door, as message, metadata or framing: a status, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.router.kit import Mesh, backend, infer, mesh, until
from integration.router.wire import INFER, frame, framed, head, wire

ECHO = "/a.Echo/Echo"
PATHS = (
    *(f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelReady")),
    *(f"/inference.GRPCInferenceService/{name}" for name in ("ModelStreamInfer", "ModelConfig")),
    *("/aiflow.registry.v1.RegistryService/Register", ECHO, "/grpc.health.v1.Health/Check"),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Protobuf is unlikely by chance: pieces of a request, in any order and cut anywhere.
fields = st.sampled_from(
    [infer("m"), infer("x"), b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x3a\x04", b"\x1a\x80\x80\x01"]
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(fields, st.binary(max_size=6)), max_size=6).map(b"".join),
)
# What HTTP/2 lets into a value; the router sees what gRPC's core lets through.
values = st.binary(max_size=40).filter(lambda raw: not set(raw) & {0, 10, 13})
names = st.sampled_from(
    (
        *("x-a", "x-a-bin", "x-request-id", "x-api-key", "authorization", "traceparent"),
        *("x-aiflow-session", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"),
        *("te", "content-type", "host"),
    )
)


class Door:
    """A router in a loop of its own, for tests that hypothesis calls many times."""

    def __init__(self, runner: asyncio.Runner, m: Mesh) -> None:
        self._runner = runner
        self.mesh = m

    def ask(self, headers: Any, body: bytes) -> str:
        """How a call ends, on a connection of its own."""
        return self._runner.run(self._ask(headers, body))

    async def _ask(self, headers: Any, body: bytes) -> str:
        async with wire(self.mesh.router.grpc_address) as connection:
            return (await connection.ask(headers, body)).told

    def throw(self, data: bytes) -> None:
        """Sends bytes after the greeting, and leaves."""
        self._runner.run(self._throw(data))

    async def _throw(self, data: bytes) -> None:
        async with wire(self.mesh.router.grpc_address) as connection:
            await connection.raw(data)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Mesh]:
        async with backend() as server, mesh() as m:
            await m.register(server.address, models=("m",))
            yield m

    with asyncio.Runner() as runner:
        context = opened()
        m = runner.run(context.__aenter__())
        yield Door(runner, m)
        runner.run(until(lambda: m.inflight() == 0))
        entries = runner.run(m.endpoints())
        assert {entry.inflight for entry in entries.values()} == {0}
        runner.run(context.__aexit__(None, None, None))


def well(told: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """A status of the caller's own making, or a reset; never a fault of the router."""
    assert told.startswith("grpc ") or told == "reset INTERNAL_ERROR"
    written = "".join(capsys.readouterr()) + caplog.text
    assert "the router failed" not in written
    assert "Traceback" not in written


@given(path=st.sampled_from(PATHS), body=bodies)
@quick
def test_any_request_body(
    door: Door,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: bytes,
) -> None:
    told = door.ask(head(path), framed(body))
    well(told, capsys, caplog)
    assert told not in {"grpc 2", "grpc 4", "grpc 13"}


@given(path=st.sampled_from((INFER, ECHO)), pairs=st.lists(st.tuples(names, values), max_size=3))
@quick
def test_any_metadata(
    door: Door,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    path: str,
    pairs: list[tuple[str, bytes]],
) -> None:
    # gRPC's core lets whoever sent bad headers wait, for a second at most.
    well(door.ask([*head(path), *pairs], framed(infer("m"))), capsys, caplog)


framing = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            framed,
            bodies,
            flag=st.integers(0, 255),
            length=st.one_of(st.none(), st.integers(0, 300), st.just(2**32 - 1)),
        ),
    ),
    max_size=4,
).map(b"".join)


@given(
    headers=st.builds(
        head,
        st.sampled_from((INFER, ECHO)),
        grpc_encoding=st.sampled_from([None, "gzip", "deflate", "identity"]),
    ),
    body=framing,
)
@quick
def test_any_framing(
    door: Door,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    headers: Any,
    body: bytes,
) -> None:
    well(door.ask(headers, body), capsys, caplog)


@given(
    frames=st.lists(
        st.builds(
            frame,
            st.integers(0, 12),
            st.integers(0, 255),
            st.integers(0, 9),
            st.binary(max_size=64),
        ),
        max_size=5,
    )
)
@settings(quick, max_examples=60)
def test_any_frames_harm_their_own_connection_at_most(
    door: Door,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    frames: list[bytes],
) -> None:
    door.throw(b"".join(frames))
    told = door.ask(head(), framed(infer("m")))
    well(told, capsys, caplog)
    assert told == "grpc 0"
