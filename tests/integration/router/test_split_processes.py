"""A guard in one of several processes stops a side in all of them."""

import json
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from integration.router.kit import Seen, backend, echo, infer
from integration.router.processes_kit import router, until
from integration.router.test_policy import admin, versions_at

from aiflow.admin.v1 import policy_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"


async def broken(seen: Seen, context: Any) -> None:
    await context.read()
    await context.abort(grpc.StatusCode.INTERNAL, "a bug in the new version")


@pytest.mark.skipif(sys.platform != "linux", reason="listen.workers needs Linux")
async def test_what_one_worker_stops_is_stopped_in_all(tmp_path: Path) -> None:
    async with backend(ModelInfer=echo) as good, backend(ModelInfer=broken) as bad:
        static = ", ".join(
            f"{{backend: {name}, address: '{server.address}', protocol: oip, models: [{name}]}}"
            for name, server in (("a", good), ("b", bad))
        )
        config = (
            "listen: {workers: 2, drain_grace: 200ms}\n"
            f"discovery: {{static: [{static}]}}\n"
            "routes: [{match: {model: a}, split: {weights: {a: 1, b: 1}, guard: {errors: 2%}}}]\n"
        )
        async with router(tmp_path, config) as running, running.channel() as channel:
            (before,) = set(await versions_at(running.address))

            async def is_stopped() -> bool:
                # Over one connection, which is one worker's.
                asked: Any = channel.unary_unary(INFER)
                await asked(infer("a"), timeout=5).code()
                found = (await admin(channel).Get(policy_pb2.GetPolicyRequest())).policy
                return bool(found.version != before)

            await until(is_stopped)
            policy = (await admin(channel).Get(policy_pb2.GetPolicyRequest())).policy
            assert policy.origin.startswith("the guard of a: b stopped, ")
            assert json.loads(policy.document)["routes"][0]["split"]["weights"] == {"a": 1, "b": 0}

            async def is_stopped_in_all() -> bool:
                return set(await versions_at(running.address)) == {policy.version}

            # The others follow the one that decides a moment later.
            await until(is_stopped_in_all, within_s=2)
