"""UsageService, asked for anything: each answer is a status that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.descriptor import FieldDescriptor
from integration.accounts.test_service import Accountant, house
from integration.tenancy.test_service import NASTY

from aiflow.admin.v1 import usage_pb2 as pb
from aiflow_router.rpc.usage import SERVICE

FAULTS = ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "UNAVAILABLE")
METHODS = pb.DESCRIPTOR.services_by_name["UsageService"].methods
# What is right of each, beside what is not.
GRANT = {"tenant": "acme", "micro_credits": 1, "reference": "r"}
RIGHT: dict[str, dict[str, Any]] = {
    "TopUp": GRANT,
    "Allocate": {**GRANT, "source": "pool", "target": "member:ann"},
}


def values(of: FieldDescriptor) -> Iterator[Any]:
    """What nobody should send there, and may."""
    if of.message_type is None:
        yield from ([value] if of.is_repeated else value for value in NASTY[of.type])
        return
    for inner in of.message_type.fields:
        for value in values(inner):
            yield getattr(pb, of.message_type.name)(**{inner.name: value})


async def ended(who: Accountant, method: str, body: bytes) -> tuple[str, str]:
    """Code and details of a call, which may be answered with one message or with many."""
    call = who._channel.unary_stream(f"/{SERVICE}/{method}")
    asked = call(body, metadata=who._metadata, timeout=20)
    try:
        async for _ in asked:
            continue
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def test_any_value_of_any_field_gives_a_status(storage_url: str, tmp_path: Path) -> None:
    async with house(tmp_path, storage_url) as found:
        await found.give(100, reference="first")
        for method in METHODS:
            for field in method.input_type.fields:
                for value in values(field):
                    fields = {**RIGHT.get(method.name, {}), field.name: value}
                    request = getattr(pb, method.input_type.name)(**fields)
                    body = request.SerializeToString()
                    code, details = await ended(found.root, method.name, body)
                    assert code not in FAULTS, (method.name, fields)
                    assert len(details) < 2000, (method.name, fields)
        assert all(left >= 0 for left in (await found.boss.has()).values())


async def test_any_bytes_give_a_status(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        for method in METHODS:
            for body in (b"\xff", b"\x0a\x05ab", b"\x0a\x01\x00"):
                code, _ = await ended(found.root, method.name, body)
                assert code not in FAULTS, (method.name, body)
