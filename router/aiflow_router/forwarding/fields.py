"""The top-level fields of a message in its raw bytes, where tensors are skipped, never decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterator

# As for a request's name: above any real message.
MAX_FIELDS = 16_384

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_SIZES = {_I64: 8, _I32: 4}

# ModelInferRequest.raw_input_contents: the tensors themselves.
_RAW_INPUTS = frozenset({7})
# What says that a request is no matter of its bytes alone: it is a step of a sequence, or its
# tensors are elsewhere and its answer shall be put there.
_ELSEWHERE = (b"sequence_", b"shared_memory_")


def self_contained(request: bytes) -> bool:
    """Whether a ModelInferRequest says all by itself, and its answer all that there is to it.

    Triton's parameters may also occur as mere data; then a request counts as one that does not.
    Raises ValueError for a malformed message.
    """
    said = without(request, _RAW_INPUTS)
    return not any(word in said for word in _ELSEWHERE)


def without(message: bytes, numbers: Collection[int]) -> bytes:
    """The message without the fields of these numbers. Raises ValueError for a malformed one."""
    parts: list[bytes] = []
    kept_from = 0
    for number, start, end in fields(message):
        if number in numbers:
            parts.append(message[kept_from:start])
            kept_from = end
    parts.append(message[kept_from:])
    return b"".join(parts)


def fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field. Raises ValueError for a malformed message."""
    position, size = 0, len(message)
    for _ in range(MAX_FIELDS):
        if position == size:
            return
        start = position
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _LEN:
            length, position = _varint(message, position)
            position += length
        elif kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in _SIZES:
            position += _SIZES[kind]
        else:
            raise ValueError("a field of a wire type that is not in use")
        if position > size:
            raise ValueError("the message is cut short")
        yield tag >> 3, start, position
    if position < size:
        raise ValueError(f"the message has more than {MAX_FIELDS} fields")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and the position after it."""
    value = shift = 0
    while shift < 70:
        if position >= len(message):
            raise ValueError("the message is cut short")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number of too many bytes")
