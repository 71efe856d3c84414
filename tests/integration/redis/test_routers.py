"""Routers, and workers of one router, that have their limits in one Redis."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from contract.buckets.kit import ask, granted, rule
from fixtures.redis import Server, StartRedis
from integration.router.kit import Mesh, backend, infer, mesh, until
from integration.router.processes_kit import router
from integration.router.processes_kit import until as until_true
from integration.router.test_nothing_kept import SETTLED_S, STRAGGLERS, collector_off

from aiflow.admin.v1 import explain_pb2, explain_pb2_grpc, policy_pb2, policy_pb2_grpc
from aiflow_router.config.file import parse
from aiflow_router.limits.memory import Memory
from aiflow_router.limits.redis.buckets import RedisBuckets
from aiflow_router.rpc.visit import Visit

INFER = "/inference.GRPCInferenceService/ModelInfer"
FOUR = "limits: [{name: four, rate: 4/min, strict: true, away: closed}]\n"


def redis(server: Server, more: str = "") -> str:
    """Patient, for this machine has other things to do."""
    return f"redis: {{url: '{server.url}', prefix: 'p{time.time_ns()}', timeout: 2s{more}}}\n"


async def codes(to: Mesh, calls: int) -> Counter[str]:
    async def one() -> str:
        try:
            await to.channel.unary_unary(INFER)(infer("m"), timeout=20)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    return Counter(await asyncio.gather(*(one() for _ in range(calls))))


async def test_routers_share_their_limits(redis_server: Server) -> None:
    config = redis(redis_server) + FOUR
    async with backend() as served, mesh(config) as one, mesh(config) as other:
        for to in (one, other):
            await to.register(served.address, models=("m",), services=())
        met = await codes(one, 5) + await codes(other, 5)
        assert met == {"OK": 4, "RESOURCE_EXHAUSTED": 6}
        assert len(served.seen) == 4
        text = await one.metrics()
    assert 'aiflow_limits_store{state="redis"} 1.0' in text
    assert 'aiflow_limits_store{state="away"} 0.0' in text
    assert 'aiflow_limits_decided_total{by="redis"} 5.0' in text
    assert "aiflow_limits_routers" in text


async def test_a_router_goes_on_while_redis_is_away_and_it_can_be_seen(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    limits = (
        "limits: [{name: some, rate: 1000/s, away: open}, {name: few, match: {model: n}, "
        "rate: 9/s, away: closed}, {name: all, match: {model: n}, rate: 9/s}]\n"
    )
    async with backend() as served, mesh(redis(server) + limits) as to:
        await to.register(served.address, models=("m", "n"), services=())
        assert await codes(to, 3) == {"OK": 3}
        server.kill()
        assert await codes(to, 3) == {"OK": 3}
        text = await to.metrics()
        assert 'aiflow_limits_store{state="away"} 1.0' in text
        assert 'aiflow_limits_decided_total{by="open"} 3.0' in text
        assert 'aiflow_limits_redis_errors_total{kind="closed"} 1.0' in text
        explain: Any = explain_pb2_grpc.ExplainServiceStub(to.channel).Explain
        told = (await explain(explain_pb2.ExplainRequest(model="n"))).limits
        assert {limit.rule: limit.by for limit in told} == {
            "some": "open",
            "few": "closed",
            "all": "share",
        }


async def test_a_router_starts_without_its_redis(start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    async with backend() as served, mesh(redis(server) + FOUR) as to:
        await to.register(served.address, models=("m",), services=())
        assert await codes(to, 2) == {"RESOURCE_EXHAUSTED": 2}
        server.start()
        async with asyncio.timeout(10):
            while 'state="redis"} 1.0' not in await to.metrics():  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.02)
        assert await codes(to, 2) == {"OK": 2}


async def test_calls_wait_for_what_other_routers_take_too(redis_server: Server) -> None:
    limits = "limits: [{name: some, rate: 20/s, burst: 1, wait: true, away: closed}]\n"
    config = redis(redis_server) + limits
    async with backend() as served, mesh(config) as one, mesh(config) as other:
        for to in (one, other):
            await to.register(served.address, models=("m",), services=())
        began_s = time.monotonic()
        met = await asyncio.gather(codes(one, 6), codes(other, 6))
        passed_s = time.monotonic() - began_s
    assert sum(met, Counter()) == {"OK": 12}
    assert passed_s >= 11 / 20


async def test_all_workers_of_a_router_together_grant_what_one_would(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    """With a password, which the printed configuration does not have and a worker needs."""
    server = start_redis(settings="requirepass s3cret\n")
    async with backend() as served:
        config = (
            "listen: {workers: 2}\n"
            f"redis: {{url: 'redis://:s3cret@127.0.0.1:{server.port}', timeout: 2s}}\n"
            "discovery:\n  static:\n"
            f"    - {{backend: b, address: '{served.address}', protocol: oip, models: [m]}}\n"
            + FOUR
        )
        async with router(tmp_path, config) as running:
            met: Counter[str] = Counter()
            for _ in range(12):  # Each on a connection of its own, so that both workers have some.
                async with running.channel() as channel:
                    call: Any = channel.unary_unary(INFER)
                    try:
                        await call(infer("m"), timeout=20)
                        met["OK"] += 1
                    except grpc.aio.AioRpcError as error:
                        met[error.code().name] += 1
            metrics = await running.metrics()
            lines = b"".join(running.lines)
    assert met == {"OK": 4, "RESOURCE_EXHAUSTED": 8}
    assert metrics["aiflow_limits_store state=redis"] == 2
    assert metrics["aiflow_limits_routers"] == 2
    assert b"s3cret" not in lines
    assert "configured" in {json.loads(line)["event"] for line in lines.splitlines()}


@pytest.mark.parametrize("away", ["killed", "stopped"])
async def test_calls_that_found_redis_away_keep_nothing(start_redis: StartRedis, away: str) -> None:
    server = start_redis()
    config = redis(server).replace("2s", "50ms") + FOUR
    async with backend() as served, mesh(config) as to:
        await to.register(served.address, models=("m",), services=())
        with collector_off():
            for _ in range(10):
                server.stop() if away == "stopped" else server.kill()
                await codes(to, 10)
                server.go_on() if away == "stopped" else server.start()
                await codes(to, 10)
            await until(lambda: to.inflight() == 0)
            await asyncio.sleep(SETTLED_S)
            kept = sum(isinstance(thing, Visit) for thing in gc.get_objects())
    assert kept <= STRAGGLERS


async def test_redis_over_tls(start_redis: StartRedis, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    server = start_redis(tls=tmp_path)
    for ca, state in ((f", tls: {{ca: '{tmp_path}/ca.pem'}}", "redis"), ("", "away")):
        found = parse(redis(server, ca)).redis
        assert found is not None
        buckets = RedisBuckets(found.settings(), prefix=found.prefix, local=Memory())
        running = asyncio.create_task(buckets.run())
        await buckets.link.tried()
        assert buckets.state == state
        assert await granted(buckets, ask(rule())) == (state == "redis") or state == "away"
        running.cancel()
        await asyncio.wait((running,))


async def test_a_reload_does_not_take_the_redis_away_that_limits_in_force_need(
    redis_server: Server, tmp_path: Path
) -> None:
    """The file has no limits, an operator has set one: each worker would have granted all of it."""
    two = "listen: {workers: 2, drain_grace: 200ms}\n"
    async with router(tmp_path, two + redis(redis_server)) as running:
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)
            await stub.Set(policy_pb2.SetPolicyRequest(document=FOUR))
        running.file.write_text(two)
        running.process.send_signal(signal.SIGHUP)
        await until_true(lambda: running.said("reload refused: the old configuration stays"))
        refused = running.said("reload refused: the old configuration stays")[0]
        assert any("cannot be kept by 2 workers" in problem for problem in refused["problems"])
