"""The policy in Consul's KV: two routers that follow one key of a real agent."""

import asyncio
import json
import urllib.error
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from fixtures.consul import ROOT_TOKEN, Agent, StartAgent
from fixtures.consul_proxy import Proxy, proxying
from integration.router.kit import ANY_PORT, until

from aiflow.admin.v1 import policy_pb2, policy_pb2_grpc
from aiflow_router.config.file import parse
from aiflow_router.main import serving
from aiflow_router.running import Router
from aiflow_sdk import errors, status

ROUTE = "routes: [{match: {model: m}, timeout: %s}]  # by hand\n"


@asynccontextmanager
async def routers(agent: Agent | Proxy, key: str, count: int = 2) -> AsyncIterator[list[Router]]:
    config = f"policy: {{consul_kv: {{key: {key}, address: '{agent.address}'}}}}\n"
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serving(parse(ANY_PORT + config + ROUTE % "1s"), access_write=lambda _: None)
            )
            for _ in range(count)
        ]


@pytest.fixture
def key() -> str:
    return f"aiflow/{uuid.uuid4().hex}/policy"


def put(agent: Agent, key: str, text: str) -> None:
    assert agent.ask("PUT", f"/v1/kv/{key}", text.encode()) is True


def timeout_of(router: Router) -> str:
    return str(json.loads(router.policies.current.text)["routes"][0]["timeout"])


async def all_at(found: list[Router], expected: str, *, within_s: float = 5.0) -> None:
    await until(lambda: {timeout_of(one) for one in found} == {expected}, within_s=within_s)


async def asked(router: Router, method: str, request: Any) -> Any:
    """Raises AiflowError."""
    async with grpc.aio.insecure_channel(router.grpc_address) as channel:
        stub: Any = policy_pb2_grpc.PolicyServiceStub(channel)
        try:
            return await getattr(stub, method)(request, timeout=10)
        except grpc.aio.AioRpcError as failure:
            raise status.from_rpc_error(failure) from None


async def test_what_is_written_by_hand_holds_at_every_router(consul: Agent, key: str) -> None:
    async with routers(consul, key) as found:
        await all_at(found, "1s")  # The file's, while there is no key.
        await asyncio.to_thread(put, consul, key, ROUTE % "2s")
        await all_at(found, "2s")
        versions = {(one.policies.current.version, one.policies.current.source) for one in found}
        assert len(versions) == 1
        ((version, source),) = versions
        assert source == "consul"
        await asyncio.to_thread(put, consul, key, ROUTE % "3s")
        await all_at(found, "3s", within_s=2)
        kept = await asyncio.to_thread(consul.ask, "GET", f"/v1/kv/{key}/versions/?keys")
        assert f"{key}/versions/{version}" in kept
        # One that starts begins with what lies there.
        async with routers(consul, key, 1) as (late,):
            assert timeout_of(late) == "3s"


async def test_what_is_wrong_in_consul_is_refused_everywhere(consul: Agent, key: str) -> None:
    async with routers(consul, key) as found:
        await asyncio.to_thread(put, consul, key, "routes: [{match: {model: m}, timout: 2s}]")
        await until(lambda: all(one.policies.refusal for one in found))
        for one in found:
            assert one.policies.refusal is not None
            (problem,) = one.policies.refusal.problems
            assert problem.startswith(f"consul:{key}:1:30: unknown key `routes.0.timout`")
            assert b"aiflow_config_load_errors_total 1.0" in one.metrics.text()
        await all_at(found, "1s")


async def test_what_is_no_text_is_refused_once(consul: Agent, key: str) -> None:
    async with routers(consul, key, 1) as (one,):
        await asyncio.to_thread(consul.ask, "PUT", f"/v1/kv/{key}", b"\xff\xfe")
        await until(lambda: one.policies.refusal is not None)
        refusal = one.policies.refusal
        assert refusal is not None
        assert "not text in UTF-8" in refusal.problems[0]
        large = "# " + "x" * 600_000 + "\n" + ROUTE % "2s"
        with pytest.raises(errors.BadInputError, match="more than the 524288 bytes"):
            await asked(one, "Set", policy_pb2.SetPolicyRequest(document=large))
        await asked(one, "Set", policy_pb2.SetPolicyRequest(document=ROUTE % "2s"))
        assert timeout_of(one) == "2s"
        assert one.policies.refusal is None
        assert b"aiflow_config_load_errors_total 1.0" in one.metrics.text()


async def test_a_change_at_one_router_is_one_at_all_and_can_be_rolled_back(
    consul: Agent, key: str
) -> None:
    async with routers(consul, key) as found:
        one, other = found
        first = policy_pb2.SetPolicyRequest(document=ROUTE % "2s")
        answer = await asked(one, "Set", first)
        assert f"lies in Consul under {key}" in answer.holds
        assert timeout_of(one) == "2s"  # At once where it was asked for.
        await all_at(found, "2s")
        second = policy_pb2.SetPolicyRequest(
            document=ROUTE % "3s", expected_version=answer.policy.version
        )
        await asked(other, "Set", second)
        await all_at(found, "3s")
        # Nobody replaces what he has not seen.
        stale = policy_pb2.SetPolicyRequest(
            document=ROUTE % "4s", expected_version=answer.policy.version
        )
        with pytest.raises(errors.RefusedError) as refused:
            await asked(one, "Set", stale)
        assert refused.value.reason == "POLICY_CHANGED"
        back = policy_pb2.RollbackPolicyRequest(version=answer.policy.version)
        await asked(one, "Rollback", back)
        await all_at(found, "2s")
        # A router that never had it in force finds it below the key.
        async with routers(consul, key, 1) as (late,):
            before = other.policies.history[1].version
            assert late.policies.kept(before) is None
            await asked(late, "Rollback", policy_pb2.RollbackPolicyRequest(version=before))
            await all_at([*found, late], "3s")


async def test_the_oldest_versions_go_and_never_the_one_in_force(
    consul: Agent, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiflow_router.policy.consul.KEPT_VERSIONS", 3)
    async with routers(consul, key) as found:
        answers = [
            await asked(found[n % 2], "Set", policy_pb2.SetPolicyRequest(document=ROUTE % f"{n}s"))
            for n in range(2, 8)
        ]
        versions = [answer.policy.version for answer in answers]

        async def kept() -> set[str]:
            names = await asyncio.to_thread(consul.ask, "GET", f"/v1/kv/{key}/versions/?keys")
            return {name.rpartition("/")[2] for name in names}

        assert await kept() == set(versions[-3:])
        back = policy_pb2.RollbackPolicyRequest(version=versions[-3])
        await asked(found[0], "Rollback", back)
        new = policy_pb2.SetPolicyRequest(document=ROUTE % "9s")
        latest = (await asked(found[0], "Set", new)).policy.version
        assert await kept() == {versions[-3], versions[-1], latest}


async def test_what_could_never_be_served_is_refused_as_in_the_file(
    consul: Agent, key: str
) -> None:
    static = "discovery: {static: [{backend: b, address: 127.0.0.1:1, protocol: oip, models: [m]}]}"
    route = "routes: [{match: {model: m}, fallback: [mm]}]"
    config = f"policy: {{consul_kv: {{key: {key}, address: '{consul.address}'}}}}\n{static}\n"
    async with serving(parse(ANY_PORT + config), access_write=lambda _: None) as one:
        with pytest.raises(errors.BadInputError, match=r'serves "mm".*did you mean `m`'):
            await asked(one, "Set", policy_pb2.SetPolicyRequest(document=route))
        await asyncio.to_thread(put, consul, key, route)
        await until(lambda: one.policies.refusal is not None)


async def test_consul_is_asked_as_discovery_asks_it_and_its_age_is_told(
    consul: Agent, key: str
) -> None:
    discovery = f"discovery: {{consul: {{address: '{consul.address}'}}}}\n"
    config = f"{discovery}policy: {{consul_kv: {{key: {key}}}}}\n{ROUTE % '1s'}"
    async with serving(parse(ANY_PORT + config), access_write=lambda _: None) as one:
        await asyncio.to_thread(put, consul, key, ROUTE % "2s")
        await all_at([one], "2s")
        (line,) = [
            line
            for line in one.metrics.text().decode().splitlines()
            if line.startswith("aiflow_policy_age_seconds ")
        ]
        assert 0 <= float(line.split()[1]) < 5


async def test_a_token_that_may_only_read_is_enough_to_follow(
    start_consul: StartAgent, key: str, tmp_path: Path
) -> None:
    agent = await asyncio.to_thread(partial(start_consul, acl=True))
    rules = 'key_prefix "" { policy = "read" }'
    policy = agent.ask("PUT", "/v1/acl/policy", {"Name": "reads", "Rules": rules})
    token = agent.ask("PUT", "/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})
    file = tmp_path / "token"
    file.write_text(token["SecretID"])
    kv = f"{{key: {key}, address: '{agent.address}', token_file: '{file}'}}"
    config = f"policy: {{consul_kv: {kv}}}\n{ROUTE % '1s'}"
    with structlog.testing.capture_logs() as log:
        async with serving(parse(ANY_PORT + config), access_write=lambda _: None) as one:
            for timeout in ("2s", "3s", "4s"):
                await asyncio.to_thread(put, agent, key, ROUTE % timeout)
                await all_at([one], timeout, within_s=2)
            with pytest.raises(errors.UnavailableError, match="give the token in token_file"):
                await asked(one, "Set", policy_pb2.SetPolicyRequest(document=ROUTE % "9s"))
            # Who may write has the versions kept.
            file.write_text(ROOT_TOKEN)
            await asked(one, "Set", policy_pb2.SetPolicyRequest(document=ROUTE % "5s"))
            await all_at([one], "5s")
    events = [line["event"] for line in log if line["log_level"] == "warning"]
    assert events == ["versions of the policy are not kept from here: the token may only read"]
    assert token["SecretID"] not in str(log)


async def test_of_changes_at_the_same_time_one_wins_everywhere(consul: Agent, key: str) -> None:
    async with routers(consul, key) as found:
        first = found[0].policies.current.version
        await asked(found[0], "Set", policy_pb2.SetPolicyRequest(document=ROUTE % "2s"))
        await all_at(found, "2s")
        first = found[0].policies.current.version
        outcomes = await asyncio.gather(
            *(
                asked(
                    found[n % 2],
                    "Set",
                    policy_pb2.SetPolicyRequest(
                        document=ROUTE % f"{10 + n}s", expected_version=first
                    ),
                )
                for n in range(6)
            ),
            return_exceptions=True,
        )
        won = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
        assert len(won) == 1
        await all_at(found, f"{10 + won[0]}s")


async def test_while_consul_is_away_the_policy_stays_and_changes_say_why(
    start_consul: StartAgent, key: str
) -> None:
    agent = await asyncio.to_thread(start_consul)
    async with routers(agent, key) as found:
        await asyncio.to_thread(put, agent, key, ROUTE % "2s")
        await all_at(found, "2s")
        await asyncio.to_thread(agent.kill)
        with pytest.raises(errors.UnavailableError) as away:
            await asked(found[0], "Set", policy_pb2.SetPolicyRequest(document=ROUTE % "3s"))
        assert away.value.reason == "POLICY_STORE_AWAY"
        await all_at(found, "2s")
        # It comes back without a memory: what is in force stays until somebody writes.
        with structlog.testing.capture_logs() as log:
            await asyncio.to_thread(agent.start)
            current = found[0].policies.current.version
            written = f"`aiflow policy rollback {current}` writes it there again"
            await until(
                lambda: sum(written in line["event"] for line in log) == len(found), within_s=25
            )
        await all_at(found, "2s")
        await asked(found[0], "Rollback", policy_pb2.RollbackPolicyRequest(version=current))
        assert agent.ask("GET", f"/v1/kv/{key}?raw")["routes"][0]["timeout"] == "2s"
        await asyncio.to_thread(put, agent, key, ROUTE % "4s")
        await all_at(found, "4s")


async def test_a_version_that_could_not_be_kept_is_missed_all_the_same_and_kept_later(
    consul: Agent, key: str
) -> None:
    async with proxying(consul.address) as proxy, routers(proxy, key, count=1) as found:
        proxy.writes = 500
        await asyncio.to_thread(put, consul, key, ROUTE % "2s")
        await all_at(found, "2s")
        with structlog.testing.capture_logs() as log:
            await asyncio.to_thread(consul.ask, "DELETE", f"/v1/kv/{key}")
            await until(lambda: any("any more" in line["event"] for line in log), within_s=15)
        await asyncio.to_thread(put, consul, key, ROUTE % "3s")
        await all_at(found, "3s", within_s=15)
        version = found[0].policies.current.version
        at = f"/v1/kv/{key}/versions/{version}"
        asked_before = proxy.asked[at]
        await until(lambda: proxy.asked[at] > asked_before, within_s=15)
        proxy.writes = None
        async with asyncio.timeout(15):
            while version not in await asyncio.to_thread(kept, consul, key):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def kept(agent: Agent, key: str) -> str:
    """The keys of the versions there."""
    try:
        return str(agent.ask("GET", f"/v1/kv/{key}/versions/?keys"))
    except urllib.error.HTTPError as error:
        assert error.code == 404  # noqa: PT017 - there are none yet
        return ""
