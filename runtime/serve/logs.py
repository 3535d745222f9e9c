"""What a server writes: one line for each request or event, as JSON or as text."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from prunion.runtime.serve.options import ServeOptions

__all__ = ["logging_of"]


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


@contextlib.contextmanager
def logging_of(options: ServeOptions) -> Iterator[None]:
    """The server's own lines and those of its libraries, one a line, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonLines() if options.log == "json" else plain)
    # What these complain of is what strangers send, in as many lines as they like.
    names = {
        "prunion.serve": logging.INFO,
        "uvicorn": logging.ERROR,
        "python_multipart": logging.ERROR,
        "PIL": logging.CRITICAL,
    }
    if options.log == "off":
        names["prunion.serve"] = logging.WARNING
    before = {name: logging.getLogger(name).level for name in names}
    for name, level in names.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        for name, level in before.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).propagate = True
