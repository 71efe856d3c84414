"""Every reply tells the version of the policy that it went by, whatever becomes of the call."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Mesh, backend, echo, infer, mesh
from integration.router.limits_kit import keys

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc

VERSION = "x-aiflow-policy-version"
OIP = "/inference.GRPCInferenceService"
INFER, STREAM = f"{OIP}/ModelInfer", f"{OIP}/ModelStreamInfer"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x01*"
SERVICE = b"\x0a\x01"  # And a letter: the field `service` or `model` of a request.


async def told(
    m: Mesh, method: str, request: bytes, *, key: str = "", stream: bool = False
) -> tuple[str, str]:
    """How a call ended, and the version that its reply told."""
    metadata = (("x-api-key", key),) if key else ()
    if stream:
        call = m.channel.stream_stream(method)(iter([request]), metadata=metadata, timeout=5)
        with contextlib.suppress(grpc.aio.AioRpcError):  # Its end is what is asked for.
            while await call.read() is not grpc.aio.EOF:
                pass
    else:
        call = m.channel.unary_unary(method)(request, metadata=metadata, timeout=5)
    code = await call.code()
    return code.name, str(dict(tuple(await call.trailing_metadata())).get(VERSION))


async def version_of(m: Mesh) -> str:
    """In force; the digest of the document that it is of."""
    stub = policy_pb2_grpc.PolicyServiceStub(m.channel)
    found: Any = (await stub.Get(policy_pb2.GetPolicyRequest())).policy
    assert hashlib.sha256(found.document.encode()).hexdigest()[:12] == found.version
    return str(found.version)


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        pytest.param(INFER, infer("m"), "OK", id="an inference"),
        pytest.param(INFER, infer("lent"), "OK", id="one that fell back"),
        pytest.param(INFER, infer("unknown"), "NOT_FOUND", id="an unknown model"),
        pytest.param(INFER, b"\xff\xff", "INVALID_ARGUMENT", id="bytes that are no request"),
        pytest.param("/a.Echo/Echo", b"x", "OK", id="a service"),
        pytest.param("/no.Service/Echo", b"x", "UNIMPLEMENTED", id="an unknown service"),
        pytest.param(f"{OIP}/RepositoryModelLoad", b"", "UNIMPLEMENTED", id="not by the router"),
        pytest.param(f"{OIP}/ServerLive", b"", "OK", id="the router itself"),
        pytest.param("/aiflow.registry.v1.RegistryService/ListEndpoints", b"", "OK", id="registry"),
        pytest.param("/aiflow.admin.v1.ExplainService/Explain", SERVICE + b"m", "OK", id="explain"),
        pytest.param(HEALTH, b"", "OK", id="health"),
        pytest.param(HEALTH, SERVICE + b"z", "NOT_FOUND", id="health of what nobody knows"),
        pytest.param(HEALTH, b"\xff", "INVALID_ARGUMENT", id="health of bytes that say nothing"),
    ],
)
async def test_a_reply_tells_the_version(method: str, request_: bytes, code: str) -> None:
    async with backend() as server, mesh("routes: [{match: {model: lent}, fallback: [m]}]") as m:
        await m.register(server.address, models=("m",))
        assert await told(m, method, request_) == (code, await version_of(m))


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        pytest.param(STREAM, infer("m"), "OK", id="a stream"),
        pytest.param(STREAM, infer("unknown"), "NOT_FOUND", id="a stream to nobody"),
        pytest.param(REFLECTION, LIST_SERVICES, "OK", id="reflection"),
    ],
)
async def test_a_stream_tells_it_when_it_ends(method: str, request_: bytes, code: str) -> None:
    async with backend(ModelStreamInfer=echo) as server, mesh() as m:
        await m.register(server.address, models=("m",), services=())
        assert await told(m, method, request_, stream=True) == (code, await version_of(m))


async def test_a_refusal_at_the_door_and_an_answer_from_the_cache_tell_it() -> None:
    config = (
        "routes: [{match: {model: m}, cache: {ttl: 60s}}]\n"
        "limits: [{name: l, rate: 2/h, burst: 2, match: {model: m}}]\n"
    )
    async with backend() as server, mesh(keys("k") + config) as m:
        await m.register(server.address, models=("m",), services=())
        version = m.router.policies.current.version
        ends = [await told(m, INFER, infer("m"), key=key) for key in ("wrong", "k", "k", "k")]
        assert len(server.seen) == 1  # The second answer was the first one.
        m.router.front.draining = True
        ends.append(await told(m, INFER, infer("m"), key="k"))
        codes = ["UNAUTHENTICATED", "OK", "OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"]
        assert ends == [(code, version) for code in codes]
