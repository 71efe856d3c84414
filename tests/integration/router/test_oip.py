"""An unchanged tritonclient works against the router in front of a real server of its protocol."""

import asyncio
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as sync_client
import tritonclient.grpc.aio as aio_client
from integration.router.kit import Mesh, mesh
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from aiflow_sdk import errors, status


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # untyped
    """Doubles what it gets."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _answer(self, request: Any) -> Any:
        doubled = 2 * np.frombuffer(request.raw_input_contents[0], np.float32)
        answer = service_pb2.ModelInferResponse(
            model_name=request.model_name, id=request.id, raw_output_contents=[doubled.tobytes()]
        )
        answer.outputs.add(name="y", datatype="FP32", shape=[doubled.size])
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer(request)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            yield service_pb2.ModelStreamInferResponse(infer_response=self._answer(request))

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["1"])

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.ModelConfigResponse()
        answer.config.name = request.name
        return answer

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.ModelStatisticsResponse()
        answer.model_stats.add(name=request.name or self.name, inference_count=3)
        return answer

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.RepositoryIndexResponse()
        answer.models.add(name=self.name, state="READY")
        return answer


@asynccontextmanager
async def tritons(*names: str) -> AsyncIterator[Mesh]:
    """A router in front of one server for each name, which serves that model and `both`."""
    servers = []
    async with mesh() as m:
        for name in names:
            server = grpc.aio.server()
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(name), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            servers.append(server)
            await m.register(f"127.0.0.1:{port}", models=(name, "both"), services=(), backend=name)
        try:
            yield m
        finally:
            for server in servers:
                await server.stop(None)


def tensors(client: Any, values: np.ndarray[Any, np.dtype[np.float32]]) -> list[Any]:
    given = client.InferInput("x", [values.size], "FP32")
    given.set_data_from_numpy(values)
    return [given]


VALUES = np.arange(4, dtype=np.float32)


async def test_the_asyncio_client() -> None:
    async with tritons("one", "two") as m:
        client = aio_client.InferenceServerClient(m.router.grpc_address)
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert (await client.get_server_metadata()).name == "aiflow"
        assert await client.is_model_ready("one")
        assert not await client.is_model_ready("three")
        assert (await client.get_model_metadata("two")).name == "two"
        assert (await client.get_model_config("two")).config.name == "two"
        index = await client.get_model_repository_index()
        assert sorted(model.name for model in index.models) == ["one", "two"]
        merged = await client.get_inference_statistics()
        assert sorted(stats.name for stats in merged.model_stats) == ["one", "two"]
        single = await client.get_inference_statistics("one")
        assert [stats.name for stats in single.model_stats] == ["one"]
        result = await client.infer("one", tensors(aio_client, VALUES))
        assert (result.as_numpy("y") == 2 * VALUES).all()
        with pytest.raises(InferenceServerException, match="did you mean two"):
            await client.infer("twoo", tensors(aio_client, VALUES))
        with pytest.raises(InferenceServerException, match="that Triton directly"):
            await client.load_model("one")

        async def requests() -> AsyncIterator[dict[str, Any]]:
            for number in range(3):
                yield {
                    "model_name": "one",
                    "inputs": tensors(aio_client, VALUES),
                    "request_id": str(number),
                }

        answers = client.stream_infer(requests())
        got = [(result, error) async for result, error in answers]
        assert [result.get_response().id for result, _ in got] == ["0", "1", "2"]
        assert not any(error for _, error in got)
        await client.close()


async def test_the_synchronous_client() -> None:
    def use(address: str) -> None:
        client = sync_client.InferenceServerClient(address)
        assert client.is_server_ready()
        assert client.is_model_ready("one")
        result = client.infer("one", tensors(sync_client, VALUES), client_timeout=5)
        assert (result.as_numpy("y") == 2 * VALUES).all()
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(3):
            client.async_stream_infer("one", tensors(sync_client, VALUES), request_id=str(number))
        got = [answers.get(timeout=5) for _ in range(3)]
        assert [result.get_response().id for result, _ in got] == ["0", "1", "2"]
        client.stop_stream()
        client.close()

    async with tritons("one") as m:
        await asyncio.to_thread(use, m.router.grpc_address)


async def test_a_stream_stays_with_the_endpoint_of_its_first_message() -> None:
    def request(model: str) -> bytes:
        values = service_pb2.ModelInferRequest(
            model_name=model, id=model, raw_input_contents=[VALUES.tobytes()]
        )
        return bytes(values.SerializeToString())

    async with tritons("one", "two") as m:
        call = m.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        for model in ("one", "both", "one"):
            await call.write(request(model))
            answer = service_pb2.ModelStreamInferResponse.FromString(await call.read())
            assert answer.infer_response.id == model
        await call.write(request("two"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        error = status.from_rpc_error(caught.value)
        assert isinstance(error, errors.BadInputError)
        assert "open another stream" in error.message


async def test_a_stream_that_ends_before_its_first_message_is_fine() -> None:
    async with tritons("one") as m:
        call = m.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_an_endpoint_that_is_away_is_left_out_of_what_is_merged() -> None:
    async with tritons("one") as m:
        await m.register("127.0.0.1:1", models=("gone",), services=(), backend="gone")
        client = aio_client.InferenceServerClient(m.router.grpc_address)
        index = await client.get_model_repository_index()
        assert [model.name for model in index.models] == ["one"]
        await client.close()
