"""Health, reflection, the registry's door, and HTTP: what the router answers itself."""

import asyncio
import json
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from integration.router.kit import backend, echo, infer, mesh, until

from aiflow.registry.v1 import registry_pb2
from aiflow_router.catalog.fields import OWN_SERVICES
from aiflow_router.forwarding.kinds import REFLECTION
from aiflow_router.rpc import explain, health, oip, policy, registry, tenancy, usage
from aiflow_sdk import errors, status

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_the_routers_own_services_are_reserved() -> None:
    asked = {method[1:].partition("/")[0] for method in REFLECTION}
    own = (explain, health, oip, policy, registry, tenancy, usage)
    services = {one.SERVICE for one in own} | asked
    assert services == OWN_SERVICES


async def test_health_follows_the_catalog() -> None:
    async with mesh() as m:
        stub: Any = health_pb2_grpc.HealthStub(m.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="detector"))
        assert (await watch.read()).status == UNKNOWN
        lease = await m.register("127.0.0.1:1", models=("detector",))
        assert (await watch.read()).status == SERVING
        for name in ("", "detector", "a.Echo", "inference.GRPCInferenceService"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        await m.registry.Deregister(registry_pb2.DeregisterRequest(lease_id=lease))
        assert (await watch.read()).status == NOT_SERVING
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="detector"))
        assert answer.status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="never"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch.cancel()


async def test_a_lease_that_is_not_renewed_ends_by_itself() -> None:
    async with mesh() as m:
        await m.register("127.0.0.1:1", models=("detector",), ttl_ms=500)
        stub: Any = health_pb2_grpc.HealthStub(m.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="detector"))
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(1):
            assert (await watch.read()).status == NOT_SERVING
        watch.cancel()


async def reflect(channel: Any, version: str, **request: Any) -> Any:
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(**request))
    await call.done_writing()
    return await call.read()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes_the_routers_and_the_catalogs_services(
    version: str,
) -> None:
    async with mesh() as m:
        await m.register("127.0.0.1:1")
        listed = await reflect(m.channel, version, list_services="*")
        names = {service.name for service in listed.list_services_response.service}
        assert names == {"a.Echo", *OWN_SERVICES}
        described = await reflect(
            m.channel, version, file_containing_symbol="inference.GRPCInferenceService"
        )
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw).package
            for raw in described.file_descriptor_response.file_descriptor_proto
        ]
        assert "inference" in files
        unknown = await reflect(m.channel, version, file_containing_symbol="a.Echo")
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_descriptor_that_is_not_the_routers_is_asked_of_an_endpoint() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="far/away.proto", package="far.away")
    answer = reflection_pb2.ServerReflectionResponse()
    answer.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())

    async def info(seen: Any, context: Any) -> None:
        seen.messages.append(await context.read())
        await context.write(answer.SerializeToString())

    async with backend(ServerReflectionInfo=info) as server, mesh() as m:
        await m.register("127.0.0.1:1", backend="dead")
        await m.register(server.address, services=("far.away.Service",), backend="far")
        for request in (
            {"file_containing_symbol": "far.away.Service.Method"},
            {"file_by_filename": "far/away.proto"},
        ):
            got = await reflect(m.channel, "v1", **request)
            assert got == answer
        assert server.seen[0].method.startswith("/grpc.reflection.v1.")


@pytest.mark.parametrize(
    ("changes", "ttl_ms", "field"),
    [
        pytest.param({"backend": "a b"}, 0, "endpoint.backend", id="a backend with a space"),
        pytest.param({"backend": ""}, 0, "endpoint.backend", id="no backend"),
        pytest.param({"address": "host"}, 0, "endpoint.address", id="an address without port"),
        pytest.param({"address": "h:0"}, 0, "endpoint.address", id="port zero"),
        pytest.param({"protocol": 0}, 0, "endpoint.protocol", id="no protocol"),
        pytest.param({"protocol": 9}, 0, "endpoint.protocol", id="an unknown protocol"),
        pytest.param({"models": []}, 0, "endpoint.models", id="OIP without models"),
        pytest.param({"models": ["a b"]}, 0, "endpoint.models", id="a model with a space"),
        pytest.param({"services": ["a/b"]}, 0, "endpoint.services", id="no service name"),
        pytest.param(
            {"services": ["grpc.health.v1.Health"]}, 0, "endpoint.services", id="an own service"
        ),
        pytest.param({"weight": 1001}, 0, "endpoint.weight", id="too heavy"),
        pytest.param({"zone": "z" * 200}, 0, "endpoint.zone", id="a long zone"),
        pytest.param({"version": "v" * 129}, 0, "endpoint.version", id="a long version"),
        pytest.param({"version": "1\x1b[2J"}, 0, "endpoint.version", id="a version that paints"),
        pytest.param({"device": "cpu\n"}, 0, "endpoint.device", id="a device of two lines"),
        pytest.param({}, 499, "ttl_ms", id="too short a lease"),
        pytest.param({}, 60_001, "ttl_ms", id="too long a lease"),
    ],
)
async def test_each_field_of_a_registration_is_checked(
    changes: dict[str, Any], ttl_ms: int, field: str
) -> None:
    good: dict[str, Any] = {"backend": "b", "address": "h:1", "protocol": 1, "models": ["m"]}
    async with mesh() as m:
        request = registry_pb2.RegisterRequest(
            endpoint=registry_pb2.Endpoint(**{**good, **changes}), ttl_ms=ttl_ms
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await m.registry.Register(request)
        error = status.from_rpc_error(caught.value)
        assert isinstance(error, errors.BadInputError)
        assert list(error.violations) == [field]
        assert await m.endpoints() == {}


async def test_registering_twice_is_one_endpoint_with_one_lease() -> None:
    async with mesh() as m:
        first = await m.register("127.0.0.1:1", models=("a",))
        assert await m.register("127.0.0.1:1", models=("b",)) == first
        (entry,) = (await m.endpoints()).values()
        assert list(entry.endpoint.models) == ["b"]
        assert 0 < entry.expires_in_ms <= 60_000


async def test_a_static_catalog_takes_no_registrations() -> None:
    text = "discovery: {static: [{backend: s, address: 'h:1', protocol: oip, models: [m]}]}"
    async with mesh(text) as m:
        with pytest.raises(grpc.aio.AioRpcError, match="embedded"):
            await m.register("127.0.0.1:1")
        assert list(await m.endpoints()) == ["h:1"]


async def test_http_says_what_is_served_and_counts_with_bounded_names() -> None:
    async with backend(ModelInfer=echo) as server, mesh() as m, aiohttp.ClientSession() as http:
        base = f"http://{m.router.http_address}"
        await m.register(server.address, models=("m",))
        call = m.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        await call(infer("m"))
        for name in ("made", "up", "names"):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(infer(name))
        async with http.get(f"{base}/healthz") as answer:
            assert answer.status == 200
        async with http.get(f"{base}/readyz") as answer:
            assert answer.status == 200
            assert await answer.json() == {
                "status": "ready",
                "models": ["m"],
                "services": ["a.Echo"],
                "endpoints": 1,
            }
        async with http.get(f"{base}/metrics") as answer:
            text = await answer.text()
        for line in (
            'aiflow_requests_total{code="OK",model="m",tenant="anonymous"} 1.0',
            'aiflow_requests_total{code="NOT_FOUND",model="unknown",tenant="anonymous"} 3.0',
            'aiflow_attempts_total{backend="echo",outcome="OK"} 1.0',
            'aiflow_inflight{backend="echo"} 0.0',
            'aiflow_endpoints{backend="echo",state="ready"} 1.0',
            'aiflow_request_duration_seconds_count{model="m"} 1.0',
            "aiflow_overhead_seconds_count 1.0",
            "aiflow_config_load_errors_total 0.0",
        ):
            assert line in text
        assert "aiflow_discovery_age_seconds" in text
        assert "made" not in text


async def test_one_log_line_a_request_says_how_it_went() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with backend() as server, mesh() as m:
        await m.register(server.address, models=("m",))
        await m.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
            infer("m"),
            metadata=(
                ("x-request-id", "job-1"),
                ("traceparent", f"00-{trace}-b7ad6b7169203331-01"),
            ),
        )
        await until(lambda: bool(m.log))
        (line,) = b"".join(m.log).splitlines()
        record = json.loads(line)
        assert record.pop("duration_ms") > 0
        assert record.pop("timestamp")
        assert record == {
            "event": "request",
            "level": "info",
            "request_id": "job-1",
            "trace_id": trace,
            "tenant": "anonymous",
            "model": "m",
            "method": "/inference.GRPCInferenceService/ModelInfer",
            "endpoint": f"m@{server.address}",
            "fallback": "",
            "attempts": 1,
            "code": "OK",
            "reason": "",
        }
