"""Structured logs: one line a fact, JSON for machines or key=value for a terminal."""

from __future__ import annotations

import logging
import sys
from dataclasses import field
from typing import Literal

import structlog
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LogSettings:
    """The [log] table."""

    level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata={"doc": "the least severe line that is written"}
    )
    format: Literal["json", "text"] = field(
        default="json", metadata={"doc": "json (one object a line) or text (for a terminal)"}
    )


def configure_logs(settings: LogSettings, **always: str) -> None:
    """Sends every log line of this process to standard error, with `always` (component, node ...) on each."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**always)
