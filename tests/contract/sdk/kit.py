"""Shared by the client tests: a service of all four call kinds, and AsyncClient made blocking."""

# ruff: noqa: N802 - a servicer's methods are named as its proto names them

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import wrappers_pb2

from aiflow_sdk import AsyncClient, Client
from aiflow_sdk.testing import serving

Text = wrappers_pb2.StringValue
Number = wrappers_pb2.Int64Value

SERVICE = "test.v1.Words"


class Words:
    """A servicer whose behaviour a test sets."""

    def __init__(self, echo: Callable[[Any, Any], Any] | None = None) -> None:
        self.echo = echo or (lambda request, _: request)

    def Echo(self, request: Any, context: Any) -> Any:
        return self.echo(request, context)

    def Spell(self, request: Any, context: Any) -> Iterator[Any]:
        for letter in request.value:
            yield Text(value=letter)
            self.echo(request, context)

    def Count(self, requests: Any, context: Any) -> Any:
        return Number(value=sum(len(request.value) for request in requests))

    def Chat(self, requests: Any, context: Any) -> Iterator[Any]:
        for request in requests:
            yield self.echo(request, context)


def add_words(servicer: Words, server: Any) -> None:
    text: dict[str, Any] = {
        "request_deserializer": Text.FromString,
        "response_serializer": lambda message: message.SerializeToString(),
    }
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(servicer.Echo, **text),
        "Spell": grpc.unary_stream_rpc_method_handler(servicer.Spell, **text),
        "Count": grpc.stream_unary_rpc_method_handler(servicer.Count, **text),
        "Chat": grpc.stream_stream_rpc_method_handler(servicer.Chat, **text),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class WordsStub:
    def __init__(self, channel: Any) -> None:
        def made(kind: str, method: str, answer: Any = Text) -> Any:
            return getattr(channel, kind)(
                f"/{SERVICE}/{method}",
                request_serializer=Text.SerializeToString,
                response_deserializer=answer.FromString,
            )

        self.Echo = made("unary_unary", "Echo")
        self.Spell = made("unary_stream", "Spell")
        self.Count = made("stream_unary", "Count", Number)
        self.Chat = made("stream_stream", "Chat")


def double(inputs: Any) -> Any:
    return {"y": inputs["x"] * 2}


ONE = {"x": np.ones((1, 2), np.float32)}


class Blocking:
    """An AsyncClient whose methods are run to their end, so that one test serves both clients."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if hasattr(result, "__aiter__"):
                return self._runner.run(_listed(result))
            return self._runner.run(result) if inspect.iscoroutine(result) else result

        return run

    def stub(self, stub_type: Any, **options: Any) -> Any:
        return _BlockingStub(self._client.stub(stub_type, **options), self._runner)


class _BlockingStub:
    def __init__(self, stub: Any, runner: asyncio.Runner) -> None:
        self._stub = stub
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)

        async def call(requests: Any, kwargs: Any) -> Any:
            answer = method(requests, **kwargs)
            return await (_listed(answer) if name in ("Spell", "Chat") else answer)

        return lambda requests, **kwargs: self._runner.run(call(requests, kwargs))


async def _listed(answers: Any) -> list[Any]:
    return [answer async for answer in answers]


Connect = Callable[..., contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def connect_sync(address: str, **options: Any) -> Iterator[Any]:
    with Client(address, **options) as client:
        yield client


@contextlib.contextmanager
def connect_async(address: str, **options: Any) -> Iterator[Any]:
    with asyncio.Runner() as runner:
        client = AsyncClient(address, **options)
        try:
            yield Blocking(client, runner)
        finally:
            runner.run(client.close())


__all__ = ["ONE", "SERVICE", "Connect", "Number", "Text", "Words", "WordsStub", "serving"]
