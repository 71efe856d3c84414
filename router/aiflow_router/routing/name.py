"""The model name in a request's raw bytes, without decoding the request.

Every routed request message has its model name as field 1, a string. Protobuf lets a field occur
several times, of which the last one counts, and in any order; a reader that took the first would
let a caller show one name to the router and another to the backend. So the whole top level is
walked, which costs the number of its fields, not its size.

Every request of the Open Inference Protocol that names a model has the version asked for as its
field 2, a string too.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiflow_sdk import errors

# Far above any real request; without it a message of tiny fields would hold the event loop.
MAX_FIELDS = 16_384

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
# What a call for another model does not keep: the name, and the version, which was the first one's.
_NAME, _VERSION = 1, 2
# Where clients put a request's parameters: behind its names, before its tensors.
_HEAD_BYTES = 1024


def model_name(message: bytes) -> str:  # noqa: C901, PLR0912 - one loop over every request
    """The last value of field 1, empty when there is none; BadInputError for malformed bytes."""
    position, end = 0, len(message)
    found: bytes | None = None
    fields = 0
    try:
        while position < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise _malformed(f"it has more than {MAX_FIELDS} top-level fields")
            tag = message[position]
            position += 1
            if tag >= 0x80:
                tag, position = _varint(message, position - 1, limit=5)
            kind, number = tag & 7, tag >> 3
            if number == 0 or number > 0x1FFFFFFF:
                raise _malformed("it has a field whose number is out of range")
            if kind == _LEN:
                size = message[position]
                position += 1
                if size >= 0x80:
                    size, position = _varint(message, position - 1, limit=5)
                start, position = position, position + size
                if number == 1:
                    found = message[start:position]
            elif kind == _VARINT:
                _, position = _varint(message, position, limit=10)
            elif kind == _I64:
                position += 8
            elif kind == _I32:
                position += 4
            else:
                raise _malformed("it has a field of a wire type that is not in use")
        if position > end:
            raise _malformed("it is cut short")
        return "" if found is None else found.decode()
    except IndexError:
        raise _malformed("it is cut short") from None
    except UnicodeDecodeError:
        raise _malformed("its model name is not UTF-8") from None


def renamed(message: bytes, name: str) -> bytes:
    """`message`, which `model_name` has read, for the model `name` and any version of it.

    The rest is copied once and not decoded. Raises BadInputError.
    """
    encoded = name.encode()
    parts: list[bytes | memoryview] = [b"\x0a", _as_varint(len(encoded)), encoded]
    view = memoryview(message)
    kept_from = 0
    for start, end in _names(message):
        if start > kept_from:
            parts.append(view[kept_from:start])
        kept_from = end
    parts.append(view[kept_from:])
    return b"".join(parts)


def in_a_sequence(message: bytes) -> bool:
    """Whether an inference looks like a step of a stateful sequence, which keeps to one model.

    Only where clients write parameters is looked, for the tensors may be large.
    """
    return message.find(b"sequence_", 0, _HEAD_BYTES) >= 0


def _names(message: bytes) -> Iterator[tuple[int, int]]:
    """Where each occurrence of the name or the version starts and ends."""
    position, end = 0, len(message)
    try:
        while position < end:
            start = position
            tag, position = _varint(message, position, limit=5)
            kind = tag & 7
            if kind == _LEN:
                size, position = _varint(message, position, limit=5)
                position += size
                if tag >> 3 in (_NAME, _VERSION):
                    yield start, position
            elif kind == _VARINT:
                _, position = _varint(message, position, limit=10)
            else:
                position += 8 if kind == _I64 else 4
    except IndexError:
        raise _malformed("it is cut short") from None


def _as_varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _varint(message: bytes, position: int, *, limit: int) -> tuple[int, int]:
    """The number at `position`, of at most `limit` bytes, and the position after it."""
    value = 0
    for index in range(limit):
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _malformed("it has a number of too many bytes")


def _malformed(why: str) -> errors.BadInputError:
    return errors.BadInputError(
        f"the request is not a valid protobuf message: {why}",
        violations={"request": why},
    )
