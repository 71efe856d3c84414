"""Every message, field, enum value and method of the contracts says what it means."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

PROTOS = Path(__file__).resolve().parents[3] / "protos"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def described(file: str, out: Path) -> descriptor_pb2.FileDescriptorProto:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={out}", file], check=True)
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def parts(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of what needs a comment, with their paths in descriptor.proto's field numbers."""
    for i, service in enumerate(file.service):
        for j, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (6, i, 2, j)
    for i, enum in enumerate(file.enum_type):
        yield enum.name, (5, i)
        for j, value in enumerate(enum.value):
            if not value.name.endswith("_UNSPECIFIED"):
                yield f"{enum.name}.{value.name}", (5, i, 2, j)
    yield from messages(file.message_type, (4,), "")


def messages(
    found: Sequence[Any], path: tuple[int, ...], prefix: str
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for i, message in enumerate(found):
        here, name = (*path, i), f"{prefix}{message.name}"
        yield name, here
        for j, field in enumerate(message.field):
            yield f"{name}.{field.name}", (*here, 2, j)
        yield from messages(message.nested_type, (*here, 3), f"{name}.")


@pytest.mark.parametrize("name", FILES)
def test_everything_is_documented(name: str, tmp_path: Path) -> None:
    file = described(name, tmp_path / "set.pb")
    commented = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip()
    }
    assert [part for part, path in parts(file) if path not in commented] == []


def test_there_are_contracts_to_look_at() -> None:
    assert len(FILES) >= 3
