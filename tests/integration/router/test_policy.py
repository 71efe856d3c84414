"""Routes that change while the router runs: from its file, and by PolicyService."""

import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import ANY_PORT, backend, infer, mesh, until
from integration.router.processes_kit import router, traffic
from integration.router.processes_kit import until as until_true

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_router.config.file import load
from aiflow_router.main import serving
from aiflow_router.policy.keeping import Watched
from aiflow_router.running import Router
from aiflow_sdk import errors, status

VERSION = "x-aiflow-policy-version"
INFER = "/inference.GRPCInferenceService/ModelInfer"
ROUTE = "routes: [{match: {model: m}, timeout: %s}]\n"


async def failure(call: Any) -> errors.AiflowError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return status.from_rpc_error(caught.value)


def admin(channel: Any) -> Any:
    return policy_pb2_grpc.PolicyServiceStub(channel)


async def set_(channel: Any, document: str, **fields: Any) -> policy_pb2.SetPolicyResponse:
    request = policy_pb2.SetPolicyRequest(document=document, **fields)
    answer: policy_pb2.SetPolicyResponse = await admin(channel).Set(request)
    return answer


async def told(channel: Any, method: str, request: bytes) -> str:
    """The version that a reply tells, whatever becomes of the call."""
    call = channel.unary_unary(method)(request, timeout=5)
    await call.code()
    return str(dict(tuple(await call.trailing_metadata()))[VERSION])


async def test_a_change_holds_for_new_calls_and_those_in_flight_end_as_they_began() -> None:
    go_on = asyncio.Event()

    async def wait(_: Any, context: Any) -> None:
        await context.read()
        await go_on.wait()
        await context.write(b"done")

    async with backend(ModelInfer=wait) as server, mesh(ROUTE % "20s") as m:
        await m.register(server.address, models=("m",))
        first = m.router.policies.current.version
        running = m.channel.unary_unary(INFER)(infer("m"), timeout=30)
        await until(lambda: len(server.seen) == 1)
        answer = await set_(m.channel, ROUTE % "200ms")
        assert (answer.replaced.version, answer.policy.source) == (first, "admin")
        assert "until its file changes or it restarts" in answer.holds
        late = m.channel.unary_unary(INFER)(infer("m"), timeout=30)
        assert isinstance(await failure(late), errors.DeadlineExceededError)
        assert dict(tuple(await late.trailing_metadata()))[VERSION] == answer.policy.version
        go_on.set()
        assert await running == b"done"
        assert dict(tuple(await running.trailing_metadata()))[VERSION] == first
        assert f'aiflow_policy_info{{source="admin",version="{answer.policy.version}"}} 1.0' in (
            await m.metrics()
        )


async def test_a_dry_run_changes_nothing() -> None:
    async with mesh() as m:
        before = m.router.policies.current
        answer = await set_(m.channel, ROUTE % "1s", dry_run=True)
        assert answer.policy.version != before.version
        assert m.router.policies.current is before


async def test_a_wrong_policy_is_refused_with_every_problem_and_the_old_one_stays() -> None:
    wrong = "routes:\n- match: {model: m}\n  timout: 2s\n- match: {model: m}\n  timeout: 2\n"
    async with mesh() as m:
        before = m.router.policies.current
        refused = await failure(set_(m.channel, wrong, name="r.yaml"))
        assert isinstance(refused, errors.BadInputError)
        assert "r.yaml:3:3: unknown key `routes.0.timout`" in refused.message
        assert "did you mean `timeout`?" in refused.message
        assert "r.yaml:5:3: routes.1.timeout: must be a duration" in refused.message
        assert m.router.policies.current is before
        assert "aiflow_config_load_errors_total 1.0" in await m.metrics()
        listed = await admin(m.channel).List(policy_pb2.ListPoliciesRequest())
        assert len(listed.refusal.problems) == 2
        await set_(m.channel, ROUTE % "2s")
        listed = await admin(m.channel).List(policy_pb2.ListPoliciesRequest())
        assert not listed.HasField("refusal")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param(
            "listen: {}", "cannot change while the router runs", id="what needs a restart"
        ),
        pytest.param(
            "routes:\n- match: {model: m}\n- match: {model: m}\n",
            "policy:3:3: routes.1.match: two routes match model",
            id="two routes for one model",
        ),
        pytest.param(
            "[" * 1_000_000, "more than 50 levels are nested", id="deeper than anybody writes"
        ),
        pytest.param("- 1", "must be a mapping of sections such as `routes:`", id="a list"),
    ],
)
async def test_what_is_no_policy_is_refused(document: str, said: str) -> None:
    async with mesh() as m:
        assert said in (await failure(set_(m.channel, document))).message


async def test_only_the_expected_version_is_replaced() -> None:
    async with mesh() as m:
        first = m.router.policies.current.version
        second = (await set_(m.channel, ROUTE % "1s", expected_version=first)).policy.version
        refused = await failure(set_(m.channel, ROUTE % "2s", expected_version=first))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "POLICY_CHANGED")
        assert second in refused.message
        # A repetition after a lost answer is none.
        assert (
            await set_(m.channel, ROUTE % "1s", expected_version=first)
        ).policy.version == second


async def test_versions_are_kept_and_can_be_rolled_back_to() -> None:
    async with mesh() as m:
        stub = admin(m.channel)
        first = m.router.policies.current.version
        second = (await set_(m.channel, ROUTE % "1s")).policy.version
        listed = await stub.List(policy_pb2.ListPoliciesRequest())
        assert [one.version for one in listed.policies] == [second, first]
        answer = await stub.Rollback(policy_pb2.RollbackPolicyRequest(version=first))
        assert (answer.policy.version, answer.replaced.version) == (first, second)
        assert m.router.policies.current.version == first
        kept = await stub.Get(policy_pb2.GetPolicyRequest(version=second))
        assert json.loads(kept.policy.document)["routes"][0]["timeout"] == "1s"
        unknown = await failure(stub.Rollback(policy_pb2.RollbackPolicyRequest(version="no")))
        assert (unknown.code, unknown.reason) == ("NOT_FOUND", "POLICY_NOT_FOUND")


async def test_a_watch_tells_each_change_and_ends_with_the_router() -> None:
    async with mesh() as m:
        watching = admin(m.channel).Watch(policy_pb2.WatchPolicyRequest())
        first: Any = await watching.read()
        assert first.policy.version == m.router.policies.current.version
        version = (await set_(m.channel, ROUTE % "1s")).policy.version
        second: Any = await watching.read()
        assert (second.policy.version, second.number) == (version, first.number + 1)
        await m.router.drain()
        assert isinstance(await failure(watching.read()), errors.DrainingError)


KEYS = """
auth:
  mode: %s
  keys:
  - {name: operator, tenant: ops, sha256: %s, may: [admin]}
  - {name: caller, tenant: shop, sha256: %s}
"""


@pytest.mark.parametrize("mode", ["optional", "required"])
@pytest.mark.parametrize(
    ("key", "refusal"),
    [
        pytest.param("op", None, id="who may admin"),
        pytest.param("call", errors.PermissionDeniedError, id="who may only call"),
        pytest.param("", errors.AuthenticationError, id="nobody"),
    ],
)
async def test_where_there_are_keys_one_that_may_admin_is_needed(
    mode: str, key: str, refusal: type[errors.AiflowError] | None
) -> None:
    hashes = (hashlib.sha256(value).hexdigest() for value in (b"op", b"call"))
    metadata = (("x-api-key", key),) if key else ()
    async with mesh(KEYS % (mode, *hashes)) as m:
        call = admin(m.channel).Set(
            policy_pb2.SetPolicyRequest(document=ROUTE % "1s"), metadata=metadata
        )
        if refusal is None:
            assert (await call).policy.origin == "ops"
        else:
            assert isinstance(await failure(call), refusal)


@asynccontextmanager
async def from_file(file: Path, text: str) -> AsyncIterator[Router]:
    in_place(file, ANY_PORT + text)
    watched = Watched(path=file, read=partial(load, file))
    async with serving(load(file), access_write=lambda _: None, watched=watched) as running:
        yield running


def in_place(file: Path, text: str) -> None:
    file.write_text(text)


def renamed(file: Path, text: str) -> None:
    other = file.with_suffix(".tmp")
    other.write_text(text)
    other.rename(file)


def away_first(file: Path, text: str) -> None:
    file.rename(file.with_suffix(".bak"))
    file.write_text(text)


@pytest.mark.parametrize("write", [in_place, renamed, away_first])
async def test_a_change_of_the_file_is_in_force_within_a_second(
    tmp_path: Path, write: Callable[[Path, str], None]
) -> None:
    file = tmp_path / "aiflow.yaml"
    async with from_file(file, ROUTE % "3s") as running:
        write(file, ANY_PORT + ROUTE % "4s")
        await until(lambda: running.front.table._models._policies["m"].timeout_s == 4, within_s=2)
        assert running.policies.current.source == "file"


async def test_a_wrong_file_is_refused_once_and_the_old_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "aiflow.yaml"
    async with from_file(file, ROUTE % "3s") as running:
        before = running.policies.current
        file.write_text(ANY_PORT + "routes: [{match: {model: m}, timout: 4s}]")
        await until(lambda: running.policies.refusal is not None)
        refusal = running.policies.refusal
        assert refusal is not None
        (problem,) = refusal.problems
        assert problem.startswith(f"{file}:2:30: unknown key `routes.0.timout`")
        assert problem.endswith("did you mean `timeout`?")
        assert running.policies.current is before
        assert b"aiflow_config_load_errors_total 1.0" in running.metrics.text()
        file.write_text(ANY_PORT + ROUTE % "3s")
        await until(lambda: running.policies.refusal is None)
        assert running.policies.current is before


async def test_a_file_that_differs_elsewhere_too_is_refused_whole(tmp_path: Path) -> None:
    file = tmp_path / "aiflow.yaml"
    async with from_file(file, ROUTE % "3s") as running:
        file.write_text(ANY_PORT + "zone: a\nhealth: {interval: 9s}\n" + ROUTE % "4s")
        await until(lambda: running.policies.refusal is not None)
        refusal = running.policies.refusal
        assert refusal is not None
        assert [problem.split()[1] for problem in refusal.problems] == ["zone", "health.interval"]
        assert "restart it" in refusal.problems[0]
        assert running.policies.number == 1


async def test_the_latest_change_wins_wherever_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "aiflow.yaml"
    async with (
        from_file(file, ROUTE % "3s") as running,
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        await set_(channel, ROUTE % "4s")
        file.write_text(ANY_PORT + "# the same\n" + ROUTE % "3s")  # Says nothing new.
        await asyncio.sleep(0.6)
        assert running.policies.current.source == "admin"
        file.write_text(ANY_PORT + ROUTE % "5s")
        await until(lambda: running.policies.current.source == "file")


async def test_batches_are_asked_about_once_a_route_fills_them() -> None:
    async with backend() as server, mesh() as m:
        await m.register(server.address, models=("m",))
        assert m.router.batches.unknown() == {}
        await set_(
            m.channel, "routes: [{match: {model: m}, balance: batch_aware, latency_aim: 200ms}]"
        )
        assert m.router.batches.unknown() == {"m": 1}
        await set_(m.channel, "routes: []")
        assert m.router.batches.unknown() == {}


@pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")
async def test_two_workers_take_a_change_of_the_file_without_a_failed_call(tmp_path: Path) -> None:
    two = "listen: {workers: 2, drain_grace: 200ms}\n"
    routes = "routes: [{match: {service: a.Echo}, timeout: %s}]\n"
    async with backend() as server:
        static = (
            "discovery: {static: [{backend: b, address: '%s', protocol: grpc, services: [a.Echo]}]}"
        )
        head = f"{two}{static % server.address}\n"
        async with router(tmp_path, head + routes % "10s") as running, running.channel() as channel:
            async with traffic(running.address) as calls:
                before = await told(channel, "/a.Echo/Echo", b"x")
                running.file.write_text(head + routes % "11s")
                last_s = await last_seen_s(running.address, before, time.monotonic())
                answer = await set_(channel, routes % "12s")
                versions = await versions_at(running.address)
                assert set(versions) == {answer.policy.version}
                running.file.write_text(head + "routes: [{matsch: {}}]\n")
                await until_true(lambda: running.said("policy refused: the one in force stays"))
                assert set(await versions_at(running.address)) == {answer.policy.version}
            assert calls.failed == []
            assert await running.metric("aiflow_config_load_errors_total") == 1
            name = f"aiflow_policy_info source=admin version={answer.policy.version}"
            assert await running.metric(name) == 1
            # A worker that starts has what is in force before it serves.
            running.workers()[0].kill()
            await until_true(lambda: running.metric("aiflow_worker_deaths_total"))
            await until_true(lambda: len(running.workers()) == 2)
            assert set(await versions_at(running.address)) == {answer.policy.version}
    assert last_s < 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")
async def test_a_reload_takes_what_a_change_of_the_file_alone_may_not(tmp_path: Path) -> None:
    two = "listen: {workers: 2, max_connection_age: 1s, drain_grace: 200ms}\n"
    routes = "routes: [{match: {service: a.Echo}, timeout: %s}]\n"
    async with router(tmp_path, two + routes % "10s") as running:
        before = (await versions_at(running.address))[0]
        running.file.write_text("slow_start: 1s\n" + two + routes % "11s")
        await until_true(lambda: running.said("policy refused: the one in force stays"))
        assert set(await versions_at(running.address)) == {before}
        running.process.send_signal(signal.SIGHUP)
        await until_true(lambda: running.metric("aiflow_reloads_total"))
        await until_true(lambda: changed_everywhere(running.address, before))


async def versions_at(address: str, connections: int = 12) -> list[str]:
    """What replies on so many connections of their own tell."""

    async def one() -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            return await told(channel, "/a.Echo/Echo", b"x")

    return list(await asyncio.gather(*(one() for _ in range(connections))))


async def changed_everywhere(address: str, before: str) -> bool:
    return before not in await versions_at(address)


async def last_seen_s(address: str, before: str, wrote_s: float) -> float:
    """When the last round of calls began in which `before` was still told, after `wrote_s`.

    Each call is on a connection of its own, so that all workers are asked.
    """
    last_s = 0.0
    async with asyncio.timeout(5):
        while True:
            began_s = time.monotonic() - wrote_s
            if await changed_everywhere(address, before):
                return last_s
            last_s = began_s
