"""`aiflow call`: any method of any service, with messages as JSON, found by server reflection."""

from __future__ import annotations

import base64
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from aiflow_sdk._methods import Method, from_descriptor
from aiflow_sdk.client import Client
from aiflow_sdk.command import files
from aiflow_sdk.command.options import calls_router
from aiflow_sdk.errors import ServiceNotFoundError


@click.command()
@click.argument("method", metavar="SERVICE/METHOD")
@click.option(
    "--data",
    default="{}",
    metavar="JSON|@FILE|-",
    help='The request as JSON, from a file or from stdin. A bytes field may say "@photo.jpg". '
    "For a stream of requests, a list of them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer alone, bytes as base64.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the answer's bytes fields to files in this folder.",
)
@calls_router
def call(*, client: Client, method: str, data: str, as_json: bool, out: Path | None) -> None:
    """Call one method and print its answer; of a stream, one JSON document a line.

    SERVICE may be shortened to its last part where that is unambiguous:
    `aiflow call ImagingService/ComposeMainImage --data @request.json`
    """
    found = find(client, method)
    requests = [to_message(found, one) for one in _documents(found, _text(data))]
    for number, answer in enumerate(_answers(client, found, requests)):
        document = json_format.MessageToDict(answer, preserving_proto_field_name=True)
        if out is not None or not as_json:
            stem = found.path.rpartition("/")[2] + (f"-{number}" if found.server_streaming else "")
            _move_bytes(document, answer, stem=stem, out=out)
        click.echo(json.dumps(document, indent=None if found.server_streaming else 2))


def find(client: Client, name: str) -> Method:
    """The method as the server describes it.

    Raises:
        ServiceNotFoundError: there is none such; names the nearest.
    """
    service, slash, method = name.strip("/").rpartition("/")
    if not slash:
        raise click.UsageError(
            f"'{name}': write SERVICE/METHOD, such as ImagingService/RenderOverlay"
        )
    database = ProtoReflectionDescriptorDatabase(client.channel(idempotent=True))
    services = list(database.get_services())
    full = [s for s in services if s == service] or [
        s for s in services if s.rpartition(".")[2] == service
    ]
    if len(full) > 1:
        raise click.UsageError(f"'{service}' is one of {', '.join(full)}: write it in full")
    if not full:
        raise ServiceNotFoundError(f"no service '{service}'; {_nearest(service, services)}")
    described = DescriptorPool(database).FindServiceByName(full[0])
    if method not in described.methods_by_name:
        hint = _nearest(method, list(described.methods_by_name))
        raise ServiceNotFoundError(f"{full[0]} has no method '{method}'; {hint}")
    return from_descriptor(described.methods_by_name[method])


def to_message(method: Method, document: Any) -> Message:
    """The request that a JSON document says; bytes fields may name a file with "@path"."""
    message = method.request_type()
    pool: Any = message.DESCRIPTOR.file.pool
    if not isinstance(document, dict):
        raise click.UsageError('--data: a request is a JSON object, such as {"name": "x"}')
    _load_bytes(document, message.DESCRIPTOR)
    try:
        json_format.ParseDict(document, message, descriptor_pool=pool)
    except json_format.ParseError as error:
        raise click.UsageError(f"--data: {error}") from error
    return message


def _text(data: str) -> str:
    if data == "-":
        return sys.stdin.read()
    return files.read(data[1:]).decode(errors="replace") if data.startswith("@") else data


def _documents(method: Method, text: str) -> list[Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--data is not JSON: {error}") from error
    if method.client_streaming:
        return document if isinstance(document, list) else [document]
    return [document]


def _answers(client: Client, method: Method, requests: list[Message]) -> Iterator[Message]:
    channel = client.channel()
    streams = ("stream" if method.client_streaming else "unary") + (
        "_stream" if method.server_streaming else "_unary"
    )
    send = getattr(channel, streams)(
        method.path, method.request_type.SerializeToString, method.reply_type.FromString
    )
    answer = send(iter(requests) if method.client_streaming else requests[0])
    return iter(answer if method.server_streaming else [answer])


def _load_bytes(document: dict[str, Any], descriptor: Any) -> None:
    """Puts the content of files, as base64, where a bytes field says "@path"."""
    fields = {f.name: f for f in descriptor.fields} | {f.json_name: f for f in descriptor.fields}
    for name, value in document.items():
        field = fields.get(name)
        if field is None:
            continue  # ParseDict says so, with the field's place
        values = value if isinstance(value, list) else [value]
        if field.type == field.TYPE_MESSAGE:
            for one in values:
                if isinstance(one, dict) and not field.message_type.GetOptions().map_entry:
                    _load_bytes(one, field.message_type)
        elif field.type == field.TYPE_BYTES:
            loaded = [
                base64.b64encode(files.read(one[1:])).decode()
                if isinstance(one, str) and one.startswith("@")
                else one
                for one in values
            ]
            document[name] = loaded if isinstance(value, list) else loaded[0]


def _move_bytes(document: Any, message: Message, *, stem: str, out: Path | None) -> None:
    """Replaces bytes by the file they were written to, or by their kind and size."""
    fields: Any = message.ListFields()
    for field, value in fields:
        place = f"{stem}-{field.name}"
        many = list(value) if field.is_repeated else [value]
        shown = document[field.name]
        if field.type == field.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry:
            for index, one in enumerate(many):
                child = shown[index] if field.is_repeated else shown
                if isinstance(child, dict):
                    suffix = f"-{index}" if field.is_repeated else ""
                    _move_bytes(child, one, stem=place + suffix, out=out)
        elif field.type == field.TYPE_BYTES:
            moved = []
            for index, one in enumerate(many):
                suffix = f"-{index}" if field.is_repeated else ""
                if out is not None:
                    moved.append("@" + str(files.write(out, place + suffix, one)))
                else:
                    kind = files.media_suffix(one).strip(".") or "bytes"
                    moved.append(f"<{kind}, {len(one)} bytes; --out DIR writes it>")
            document[field.name] = moved if field.is_repeated else moved[0]


def _nearest(name: str, known: list[str]) -> str:
    short = {one.rpartition(".")[2]: one for one in known} | {one: one for one in known}
    near = difflib.get_close_matches(name, short, n=1)
    return f"did you mean {short[near[0]]}?" if near else f"there are: {', '.join(sorted(known))}"
