"""The cache where calls go by a course, and where the policy changes while the router runs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from integration.router.kit import Mesh, Seen, backend, busy, infer, mesh, until

from aiflow_router.config.file import parse_policy
from aiflow_router.policy.edition import edition

INFER = "/inference.GRPCInferenceService/ModelInfer"


class Numbered:
    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = 0

    async def __call__(self, seen: Seen, context: Any) -> None:
        self.asked += 1
        await context.read()
        await context.write(f"{self.name} {self.asked}".encode())


async def ask(m: Mesh) -> tuple[bytes, dict[str, Any]]:
    call = m.channel.unary_unary(INFER)(infer("m"))
    return await call, dict(tuple(await call.trailing_metadata()))


async def change(m: Mesh, routes: str) -> None:
    document = parse_policy(f"routes: [{routes}]")
    await m.router.policies.put(edition(document, source="admin", origin="test", since_s=0.0))


async def test_a_fallback_answers_from_its_own_models_cache() -> None:
    other = Numbered("other")
    routes = (
        "{match: {model: m}, retry: {attempts: 1}, fallback: [other], cache: {ttl: 60s}}, "
        "{match: {model: other}, cache: {ttl: 60s}}"
    )
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh(f"routes: [{routes}]"))
        for name, handle in (("m", busy), ("other", other)):
            server = await stack.enter_async_context(backend(ModelInfer=handle))
            await m.register(server.address, models=(name,), services=(), backend=name)
        results = [await ask(m) for _ in range(3)]
        assert [answer for answer, _ in results] == [b"other 1"] * 3
        told = [(told["x-aiflow-cache"], told["x-aiflow-fallback"]) for _, told in results]
        assert told == [("miss", "unavailable"), ("hit", "unavailable"), ("hit", "unavailable")]
        assert results[2][1]["x-aiflow-served-by"].startswith("other@")


async def test_each_side_of_a_split_has_its_own_answers_and_copies() -> None:
    new = Numbered("new")
    routes = (
        "{match: {model: m}, split: {new: 100, m: 0}, cache: {ttl: 60s}}, "
        "{match: {model: new}, cache: {ttl: 60s}}"
    )
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh(f"routes: [{routes}]"))
        for name, handle in (("m", busy), ("new", new)):
            server = await stack.enter_async_context(backend(ModelInfer=handle))
            await m.register(server.address, models=(name,), services=(), backend=name)
        assert [(await ask(m))[0] for _ in range(2)] == [b"new 1"] * 2


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param("cache: {ttl: 60s}, timeout: 3s", b"m 1", id="the same rule keeps it"),
        pytest.param("cache: {ttl: 50s}", b"m 2", id="another rule begins anew"),
        pytest.param("timeout: 3s", b"m 2", id="without one every call is made"),
    ],
)
async def test_a_change_of_the_policy(after: str, expected: bytes) -> None:
    model = Numbered("m")
    async with (
        backend(ModelInfer=model) as server,
        mesh("routes: [{match: {model: m}, cache: {ttl: 60s}}]") as m,
    ):
        await m.register(server.address, models=("m",), services=())
        assert (await ask(m))[0] == b"m 1"
        await change(m, f"{{match: {{model: m}}, {after}}}")
        assert (await ask(m))[0] == expected
        # And back again.
        await change(m, "{match: {model: m}, cache: {ttl: 60s}}")
        assert (await ask(m))[0] in {b"m 1", b"m 2", b"m 3"}
        assert (await ask(m))[1]["x-aiflow-cache"] == "hit"


async def test_a_shadow_is_begun_and_ended_by_the_policy() -> None:
    model, other = Numbered("m"), Numbered("other")
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh("routes: [{match: {model: m}}]"))
        for name, handle in (("m", model), ("other", other)):
            server = await stack.enter_async_context(backend(ModelInfer=handle))
            await m.register(server.address, models=(name,), services=(), backend=name)
        await ask(m)
        await change(m, "{match: {model: m}, shadow: {to: other, percent: 100}}")
        await ask(m)
        await change(m, "{match: {model: m}}")
        await ask(m)
        await until(lambda: other.asked > 0)
        assert (model.asked, other.asked) == (3, 1)
