"""Which of several sockets at one address gets a new connection: small programs for Linux.

Sockets that listen at one address with SO_REUSEPORT form a group, and Linux picks one of them by a
hash of the addresses. A classic BPF program can pick instead; it needs no privilege. The group is
an array: a socket that begins to listen goes to its end, and when one closes the last takes its
place. `Group` keeps that order, for nothing in Linux tells it.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Sequence

_SO_ATTACH_FILTER = 26
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68

# Instructions of classic BPF: (code, jump if true, jump if false, operand).
Program = Sequence[tuple[int, int, int, int]]

_LOAD_WORD, _LOAD_BYTE, _AND, _MODULO, _ADD = 0x20, 0x30, 0x54, 0x94, 0x04
_IF_EQUAL, _IF_AT_LEAST, _RETURN, _RETURN_RESULT = 0x15, 0x35, 0x06, 0x16
_A_RANDOM_WORD = 0xFFFFF000 + 56
_TCP_FLAGS, _SYN_AND_ACK, _SYN = 13, 0x12, 0x02

# For one socket: drops a SYN alone, which its caller's kernel repeats a second later.
_NO_HANDSHAKE: Program = (
    (_LOAD_BYTE, 0, 0, _TCP_FLAGS),
    (_AND, 0, 0, _SYN_AND_ACK),
    (_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFFFFFF),
)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class Group:
    """The order of the sockets that listen at one address, by the name of whose they are."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def joined(self, name: str) -> None:
        self._names.append(name)

    def left(self, name: str) -> None:
        """May be told twice."""
        if name in self._names:
            index = self._names.index(name)
            self._names[index] = self._names[-1]
            self._names.pop()

    def place(self, name: str) -> tuple[int, int]:
        """Index of the socket, and how many there are; 0 of 0 where it is not known."""
        if name not in self._names:
            return 0, 0
        return self._names.index(name), len(self._names)


def others_than(index: int, of: int) -> Program:
    """For a group: any but the one at `index`, each as often."""
    return (
        (_LOAD_WORD, 0, 0, _A_RANDOM_WORD),
        (_MODULO, 0, 0, of - 1),
        (_IF_AT_LEAST, 0, 1, index),
        (_ADD, 0, 0, 1),
        (_RETURN_RESULT, 0, 0, 0),
    )


def steer(member: socket.socket, program: Program) -> None:
    """From now on `program` picks in the group of `member`."""
    _attach(member, _SO_ATTACH_REUSEPORT_CBPF, program)


def let_go(member: socket.socket) -> None:
    """From now on the hash picks again."""
    with contextlib.suppress(FileNotFoundError):  # Nothing else did.
        member.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)


def drop_handshakes(listening: socket.socket) -> None:
    """New ones; those that have begun go on. Where Linux asks for CAP_NET_ADMIN, only with it."""
    with contextlib.suppress(PermissionError):
        _attach(listening, _SO_ATTACH_FILTER, _NO_HANDSHAKE)


def _attach(to: socket.socket, option: int, program: Program) -> None:
    steps = (_Instruction * len(program))(*(_Instruction(*step) for step in program))
    to.setsockopt(
        socket.SOL_SOCKET, option, struct.pack("HP", len(program), ctypes.addressof(steps))
    )
