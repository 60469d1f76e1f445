"""The daemons' log: one line per event on stderr, with stable event names."""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure_log(*, verbose: bool) -> None:
    """Log to stderr from the level "info" on, or "debug" with `verbose`.

    A terminal gets colours; a file ``key=value`` pairs (logfmt); the journal those without the time, which it knows.
    """
    level = logging.DEBUG if verbose else logging.INFO
    renderer: list[structlog.typing.Processor]
    if sys.stderr.isatty():
        renderer = [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(pad_event_to=20),
        ]
    else:
        stamp = [] if "JOURNAL_STREAM" in os.environ else [structlog.processors.TimeStamper(fmt="iso", utc=True)]
        order = ["timestamp", "level", "event"]
        renderer = [
            *stamp,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True, bool_as_flag=False),
        ]
    structlog.configure(
        processors=[structlog.processors.add_log_level, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What asyncio has to say is rare and matters.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="level=%(levelname)s event=%(message)s")


def log_warning(event: str, **details: str) -> None:
    """Log a warning of the command line's own."""
    structlog.get_logger("msocks.cli").warning(event, **details)
