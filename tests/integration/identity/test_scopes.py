"""The scope of a key: the models and methods it names, and no others."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest
from integration.identity.kit import INFER, stored
from integration.router.kit import infer

from aiflow_sdk import status

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
SCOPES = [
    pytest.param({"models": ["m"]}, INFER, infer("m"), "", id="a model in the scope"),
    pytest.param({"models": ["m"]}, INFER, infer("n"), "MODEL_FORBIDDEN", id="another model"),
    pytest.param({"models": ["?"]}, INFER, infer("n"), "", id="a model by pattern"),
    pytest.param({"models": ["M"]}, INFER, infer("m"), "MODEL_FORBIDDEN", id="case counts"),
    pytest.param(
        {"models": ["m"]}, INFER, infer("nobody's"), "MODEL_FORBIDDEN", id="one that is not there"
    ),
    pytest.param(
        {"models": ["m"]}, "/a.Echo/Echo", b"x", "METHOD_FORBIDDEN", id="a service, of models only"
    ),
    pytest.param(
        {"models": ["m"], "methods": ["/a.Echo/*", "/inference.*"]},
        "/a.Echo/Echo",
        b"x",
        "",
        id="a service beside models",
    ),
    pytest.param({"methods": ["/a.Echo/Echo"]}, "/a.Echo/Echo", b"x", "", id="a method"),
    pytest.param(
        {"methods": ["/a.Echo/Echo"]}, INFER, infer("m"), "METHOD_FORBIDDEN", id="another method"
    ),
    pytest.param(
        {"models": ["m"]}, STATISTICS, b"", "MODEL_FORBIDDEN", id="what is told of all models"
    ),
]


@pytest.mark.parametrize(("scope", "method", "request_", "reason"), SCOPES)
async def test_a_scope_lets_through_what_it_names(
    tmp_path: Path, scope: dict[str, list[str]], method: str, request_: bytes, reason: str
) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        key = await all_.office.key("acme", "ann", **scope)
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        if not reason:
            assert await all_.call(key.text, method, request_) == request_
            return
        if method == STATISTICS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await all_.mesh.channel.unary_unary(method)(
                    b"", metadata=(("x-api-key", key.text),)
                )
            error = status.from_rpc_error(caught.value)
        else:
            error = await all_.refused(key.text, method, request_)
        assert (error.code, error.reason) == ("PERMISSION_DENIED", reason)
        assert key.key in error.message


async def test_a_stream_does_not_reach_another_model_behind_the_first(tmp_path: Path) -> None:
    async with stored(f"sqlite:///{tmp_path / 'a.db'}", tmp_path) as all_:
        key = await all_.office.key("acme", "ann", models=["m"])
        await all_.taken(await all_.office.change_key(key.key, name="renamed"))
        call = all_.mesh.channel.stream_stream(STREAM)(metadata=(("x-api-key", key.text),))
        await call.write(infer("m"))
        assert await call.read() == infer("m")
        await call.write(infer("n"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert status.from_rpc_error(caught.value).reason == "MODEL_FORBIDDEN"
