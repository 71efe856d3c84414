"""What gRPC's Python layer writes to the log because of bytes that a caller chose.

It logs a traceback for each metadata value and each path that is not UTF-8, some of them twice.
Such a call is refused and has its line in the access log, or its caller is told; a traceback more
says nothing about the router, and anyone could fill the log with them.
"""

from __future__ import annotations

import logging

_LOGGER = "grpc._cython.cygrpc"
_BY_CALLERS = ("Invalid encoding on ", "Unexpected [UnicodeDecodeError] raised by servicer method")


def _is_ours(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_BY_CALLERS)


def leave_out_callers_bytes() -> None:
    """From here on such records are dropped; doing it again changes nothing."""
    logging.getLogger(_LOGGER).addFilter(_is_ours)
