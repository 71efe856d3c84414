"""The model name in a request's raw bytes, without decoding the request.

Every routed request message has its model name as field 1, a string. Protobuf lets a field occur
several times, of which the last one counts, and in any order; a reader that took the first would
let a caller show one name to the router and another to the backend. So the whole top level is
walked, which costs the number of its fields, not its size.
"""

from __future__ import annotations

from aiflow_sdk import errors

# Far above any real request; without it a message of tiny fields would hold the event loop.
MAX_FIELDS = 16_384

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


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
    """The message with `name` as its model name, and nothing else changed.

    Of a field that occurs twice the last one counts, so the name that was there may stay.
    """
    encoded = name.encode()
    size = len(encoded)
    head = bytearray(b"\x0a")
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((message, head, encoded))


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
