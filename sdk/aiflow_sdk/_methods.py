"""Finds a method by name among the protos that the request's own class came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import Message

from aiflow_sdk.errors import BadInputError

METHOD_NEEDED = "method must be a unary method of client.stub(...), or 'package.Service/Method'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    path: str
    """"/package.Service/Method"."""
    request_type: type[Message]
    reply_type: type[Message]
    client_streaming: bool
    server_streaming: bool


def resolve(name: str, request: Message) -> Method:
    """The method `name` for `request`; raises BadInputError where there is none."""
    service, slash, method = name.strip("/").rpartition("/")
    if not slash:
        raise BadInputError(f"{name!r} is not a method name such as 'package.Service/Method'")
    try:
        found = request.DESCRIPTOR.file.pool.FindMethodByName(f"{service}.{method}")
    except KeyError:
        raise BadInputError(
            f"the protos of {request.DESCRIPTOR.full_name} hold no {name}"
        ) from None
    if found.input_type is not request.DESCRIPTOR:
        raise BadInputError(
            f"{name} takes {found.input_type.full_name}, not {request.DESCRIPTOR.full_name}"
        )
    return from_descriptor(found)


def from_descriptor(found: Any) -> Method:
    return Method(
        path=f"/{found.containing_service.full_name}/{found.name}",
        request_type=message_factory.GetMessageClass(found.input_type),
        reply_type=message_factory.GetMessageClass(found.output_type),
        client_streaming=found.client_streaming,
        server_streaming=found.server_streaming,
    )
