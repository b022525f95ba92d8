"""Log records."""

from __future__ import annotations

import logging

# What every LogRecord has, whoever logs.
COMMON = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def facts(record):
    """The structured fields of a record."""
    return {name: value for name, value in vars(record).items() if name not in COMMON}
