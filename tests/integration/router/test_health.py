"""Endpoints that die, hang, fail or say that they are unwell, with traffic running."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
from integration.router.health_server import (
    NOT_SERVING,
    SERVING,
    Server,
    model_server,
    processes,
)
from integration.router.kit import Mesh, infer, mesh, until

from aiflow.registry.v1 import registry_pb2
from aiflow_sdk import status

INFER = "/inference.GRPCInferenceService/ModelInfer"
READY = registry_pb2.ENDPOINT_STATE_READY
UNREACHABLE = registry_pb2.ENDPOINT_STATE_UNREACHABLE
UNHEALTHY = registry_pb2.ENDPOINT_STATE_UNHEALTHY
CHECKS = 'aiflow_health_checks_total{backend="b",'
EJECTED = registry_pb2.ENDPOINT_STATE_EJECTED


def static(addresses: Sequence[str], *, zones: str = "", more: str = "") -> str:
    """A configuration with these endpoints of model m."""
    listed = [
        f"{{backend: b, address: '{address}', protocol: oip, models: [m], "
        f"zone: '{zones[number] if zones else ''}'}}"
        for number, address in enumerate(addresses)
    ]
    return f"discovery: {{embedded: {{}}, static: [{', '.join(listed)}]}}\n{more}"


@dataclass
class Traffic:
    """Calls one after the other from several callers.

    Attributes:
        served: who answered, and when, in order.
        failed: the reasons of those that failed.
        attempts: how many calls took how many.
    """

    served: list[tuple[float, str]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)

    def by(self, address: str, *, since_s: float = 0.0) -> int:
        return sum(1 for at_s, who in self.served if who == address and at_s >= since_s)

    async def call(self, m: Mesh, *, timeout_s: float | None = None) -> None:
        rpc = m.channel.unary_unary(INFER)(infer("m"), timeout=timeout_s)
        try:
            await rpc
        except grpc.aio.AioRpcError as failure:
            error = status.from_rpc_error(failure)
            self.failed[error.reason or error.code] += 1
            return
        trailing = dict(tuple(await rpc.trailing_metadata()))
        self.attempts[trailing["x-aiflow-attempts"]] += 1
        self.served.append((time.monotonic(), trailing["x-aiflow-served-by"].partition("@")[2]))


@asynccontextmanager
async def traffic(
    m: Mesh, *, callers: int = 4, pause_s: float = 0.005, timeout_s: float | None = None
) -> AsyncIterator[Traffic]:
    found, stop = Traffic(), asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            await found.call(m, timeout_s=timeout_s)
            await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    try:
        yield found
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def watched(m: Mesh) -> int:
    """How many endpoints tell their health by themselves: it is checked once, then told."""
    return int(metric(m, f'{CHECKS}result="serving"}}')) // 2


async def shown(m: Mesh, address: str, *states: int, within_s: float = 5.0) -> float:
    """Seconds until the endpoint is in one of these states."""
    started_s = time.monotonic()
    while (await m.endpoints())[address].state not in states:
        assert time.monotonic() < started_s + within_s, (await m.endpoints())[address]
        await asyncio.sleep(0.02)
    return time.monotonic() - started_s


def metric(m: Mesh, line: str) -> float:
    """The value of the sample that starts with `line`; 0 where there is none."""
    text = m.router.front.metrics.text().decode()
    found = [part for part in text.splitlines() if part.startswith(line)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.mark.parametrize("leased", [False, True], ids=["static", "leased"])
async def test_kill_9_of_one_of_three_fails_no_call_and_it_is_back_soon(*, leased: bool) -> None:
    async with (
        processes(3) as (servers, addresses),
        mesh("" if leased else static(addresses)) as m,
    ):
        for address in addresses if leased else ():
            await m.register(address, models=("m",))
        victim = addresses[0]
        async with traffic(m, callers=8) as seen:
            await until(lambda: all(seen.by(address) > 20 for address in addresses))
            await servers.kill(victim)
            assert await shown(m, victim, UNREACHABLE) < 1
            # It stays out, and no call pays for finding that out.
            await asyncio.sleep(1.5)
            assert (await m.endpoints())[victim].state == UNREACHABLE
            await servers.start(victim)
            returned_s = time.monotonic()
            if leased:
                await m.register(victim, models=("m",))
            await until(lambda: seen.by(victim, since_s=returned_s) > 0)
            assert time.monotonic() - returned_s < 3
        assert not seen.failed
        assert (await m.endpoints())[victim].state == READY
        unreachable = 'aiflow_attempts_total{backend="b",outcome="UNREACHABLE"}'
        assert metric(m, unreachable) <= 8


async def test_a_stopped_process_is_found_by_its_silence_and_returns_when_it_goes_on() -> None:
    checked = (
        "health: {interval: 500ms, timeout: 300ms}\nejection: {mode: off}\n"
        "routes: [{match: {model: m}, timeout: 20s}]"
    )
    async with processes(2) as (servers, addresses), mesh(static(addresses, more=checked)) as m:
        victim = addresses[0]
        async with traffic(m, callers=4, timeout_s=8) as seen:
            await until(lambda: watched(m) == 2)
            servers.send(victim, signal.SIGSTOP)
            # Between the checks that fail it is silent for a second, and an interval passes.
            assert await shown(m, victim, UNHEALTHY) < 4
            left = (await m.endpoints())[victim].inflight
            assert 0 < left <= 4
            served = len(seen.served)
            await until(lambda: len(seen.served) > served + 20 or left == 4)
            servers.send(victim, signal.SIGCONT)
            assert await shown(m, victim, READY) < 4
            await until(lambda: seen.by(victim, since_s=time.monotonic() - 1) > 0)
        assert not seen.failed  # They were answered when it went on.


async def test_a_stopped_process_costs_a_call_one_try_at_most_and_is_ejected() -> None:
    config = (
        "routes: [{match: {model: m}, retry: {per_try_timeout: 300ms}}]\n"
        "ejection: {base_time: 1s}\nhealth: {active: false}"
    )
    async with processes(3) as (servers, addresses), mesh(static(addresses, more=config)) as m:
        victim = addresses[0]
        async with traffic(m, callers=6) as seen:
            await until(lambda: all(seen.by(address) > 20 for address in addresses))
            servers.send(victim, signal.SIGSTOP)
            await shown(m, victim, EJECTED)
            timeouts = 'aiflow_attempts_total{backend="b",outcome="PER_TRY_TIMEOUT"}'
            assert 5 <= metric(m, timeouts) <= 5 + 6
            servers.send(victim, signal.SIGCONT)
            await shown(m, victim, READY)
        assert not seen.failed
        assert set(seen.attempts) == {"1", "2"}


async def test_a_stopped_process_that_offers_no_health_is_found_all_the_same() -> None:
    checked = (
        "health: {interval: 300ms, timeout: 200ms}\nroutes: [{match: {model: m}, timeout: 9s}]"
    )
    async with (
        processes(2, mute=True) as (servers, (victim, other)),
        mesh(static([victim, other], more=checked)) as m,
        traffic(m, callers=2) as seen,
    ):
        await until(lambda: metric(m, f'{CHECKS}result="not_offered"}}') > 0)
        await until(lambda: seen.by(victim) > 5 and seen.by(other) > 5)
        servers.send(victim, signal.SIGSTOP)
        await shown(m, victim, UNHEALTHY)
        assert (await m.endpoints())[other].state == READY
        servers.send(victim, signal.SIGCONT)
        await shown(m, victim, READY)
        assert not seen.failed


async def test_an_endpoint_that_turns_ten_times_slower_is_avoided_within_5_s() -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(model_server()) for _ in range(3)]
        for server in servers:
            server.takes_s = 0.1  # So long that a stall of a busy machine is no tenfold.
        route = "routes: [{match: {model: m}, balance: peak_ewma}]"
        m = await stack.enter_async_context(mesh(static([s.address for s in servers], more=route)))
        seen = await stack.enter_async_context(traffic(m, callers=8))
        await until(lambda: all(server.calls > 5 for server in servers))
        servers[0].takes_s = 1.0
        slow_s = time.monotonic()
        # Whole windows of calls, until in one of them fewer than 1 in 100 met the slow one.
        while True:
            start = len(seen.served)
            await until(lambda start=start: len(seen.served) >= start + 100)  # type: ignore[misc]
            window = seen.served[start : start + 100]
            if sum(who == servers[0].address for _, who in window) < 2:
                break
        assert window[0][0] - slow_s < 5
        assert not seen.failed


async def test_with_all_endpoints_gone_calls_fail_at_once_and_all_are_tried() -> None:
    async with processes(2) as (servers, addresses), mesh(static(addresses)) as m:
        seen = Traffic()
        while watched(m) < 2:
            await seen.call(m)
        assert not seen.failed
        await asyncio.gather(*(servers.kill(address) for address in addresses))
        for address in addresses:  # Found by the broken connection, without a call.
            assert await shown(m, address, UNREACHABLE) < 1
        assert metric(m, 'aiflow_panic{backend="b"}') == 1
        started_s = time.monotonic()
        for _ in range(10):
            await seen.call(m)
        assert time.monotonic() - started_s < 2
        assert seen.failed == {"NO_ENDPOINT": 10}
        await servers.start(addresses[1])
        assert await shown(m, addresses[1], READY) < 3
        await seen.call(m)
        assert seen.failed == {"NO_ENDPOINT": 10}
        assert metric(m, 'aiflow_panic{backend="b"}') == 0


@pytest.mark.parametrize("watched", [True, False], ids=["Watch", "Check"])
async def test_not_serving_takes_out_at_once_and_serving_returns(*, watched: bool) -> None:
    async with model_server(watched=watched) as one, model_server() as two:
        checked = "health: {interval: 200ms, timeout: 200ms}"
        async with (
            mesh(static([one.address, two.address], more=checked)) as m,
            traffic(m) as seen,
        ):
            await until(lambda: one.calls > 5 and one.health.checks > 0)
            for _ in range(3):
                await one.say(NOT_SERVING)
                assert await shown(m, one.address, UNHEALTHY) < 2
                before = one.calls
                served = len(seen.served)
                await until(lambda served=served: len(seen.served) > served + 40)  # type: ignore[misc]
                assert one.calls - before <= 4  # Those that were on their way.
                await one.say(SERVING)
                assert await shown(m, one.address, READY) < 3
                await until(lambda before=one.calls: one.calls > before)  # type: ignore[misc]
        assert not seen.failed
        assert (one.health.watches > 0) == watched


async def test_when_all_say_not_serving_all_are_used() -> None:
    async with model_server() as one, model_server() as two:
        async with mesh(static([one.address, two.address])) as m, traffic(m) as seen:
            await until(lambda: one.health.watches > 0 < two.health.watches)
            for server in (one, two):
                await server.say(NOT_SERVING)
                await shown(m, server.address, UNHEALTHY)
            before = one.calls, two.calls
            await until(lambda: one.calls > before[0] + 5 and two.calls > before[1] + 5)
            assert metric(m, 'aiflow_panic{backend="b"}') == 1
        assert not seen.failed


async def test_an_endpoint_that_fails_is_ejected_and_one_good_call_returns_it() -> None:
    short = "ejection: {base_time: 400ms, max_time: 400ms}\nslow_start: 300ms"
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(model_server()) for _ in range(3)]
        bad = servers[0]
        m = await stack.enter_async_context(
            mesh(static([server.address for server in servers], more=short))
        )
        bad.fails = grpc.StatusCode.INTERNAL
        async with traffic(m) as seen:
            await shown(m, bad.address, EJECTED)
            # Five in a row, and what was in flight with them.
            assert 5 <= seen.failed.total() <= 5 + 4
            ejections = 'aiflow_ejections_total{backend="b",reason='
            assert metric(m, f'{ejections}"consecutive_faults"}}') == 1
            trials = seen.failed.total()
            await until(lambda: seen.failed.total() >= trials + 2)  # Each is one call's failure.
            assert metric(m, f'{ejections}"failed_trial"}}') >= 2
            bad.fails = None
            failed, answered = seen.failed.total(), bad.calls
            await until(lambda: bad.calls > answered + 20)
            assert seen.failed.total() <= failed + 1
            await shown(m, bad.address, READY)


async def test_shadow_ejects_nothing_and_counts() -> None:
    async with model_server() as good, model_server() as bad:
        bad.fails = grpc.StatusCode.INTERNAL
        shadow = "ejection: {mode: shadow}"
        async with mesh(static([good.address, bad.address], more=shadow)) as m:
            async with traffic(m) as seen:
                await until(lambda: seen.failed.total() > 20)
            assert (await m.endpoints())[bad.address].state == READY
            assert metric(m, "aiflow_ejections_shadow_total{") >= 4
            assert metric(m, "aiflow_ejections_total{") == 0


async def test_only_endpoints_in_use_are_checked() -> None:
    async with model_server() as used, model_server() as idle:
        config = static([used.address, idle.address]).replace(
            f"'{idle.address}', protocol: oip, models: [m]",
            f"'{idle.address}', protocol: oip, models: [n]",
        )
        async with mesh(config) as m:
            seen = Traffic()
            await seen.call(m)
            await until(lambda: used.health.watches == 1)
            assert (idle.health.checks, idle.health.watches) == (0, 0)


async def test_calls_stay_in_the_routers_zone_until_that_has_too_few() -> None:
    async with AsyncExitStack() as stack:
        servers: list[Server] = [await stack.enter_async_context(model_server()) for _ in range(4)]
        here, also_here, *elsewhere = servers
        config = static([server.address for server in servers], zones="aabb", more="zone: a")
        m = await stack.enter_async_context(mesh(config))
        seen = Traffic()

        async def calls(count: int) -> dict[str, int]:
            before = len(seen.served)
            for _ in range(count):
                await seen.call(m)
            return Counter(who for _, who in seen.served[before:])

        assert set(await calls(40)) == {here.address, also_here.address}
        await here.say(NOT_SERVING)
        await shown(m, here.address, UNHEALTHY)
        got = await calls(200)  # Of the fit ones a third is here, where half would be fair.
        assert set(got) == {server.address for server in (also_here, *elsewhere)}
        assert 100 < got[also_here.address] < 167
        await also_here.say(NOT_SERVING)
        await shown(m, also_here.address, UNHEALTHY)
        assert set(await calls(40)) == {server.address for server in elsewhere}
        assert not seen.failed
