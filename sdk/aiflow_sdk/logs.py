"""Structured logs: JSON lines for machines, or coloured lines where a person is looking."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["json", "console"]


def configure(*, format: LogFormat | None = None, level: str = "INFO") -> None:  # noqa: A002 - the option's name
    """Sends structlog's and the standard library's records to stderr, one line each.

    Args:
        format: "json", "console", or None for console where stderr is a terminal.
        level: the lowest level that is written.
    """
    chosen = format or ("console" if sys.stderr.isatty() else "json")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if chosen == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # A line and its end in one write: other processes may write to the same place.
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=last)
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # It tells of each of its plugins as soon as it is imported.
    logging.getLogger("alembic").setLevel(logging.WARNING)
