"""The sandbox's composition root."""

import logging
import sys
from typing import Final

import structlog
import uvloop

from services.adapters import http_server, telemetry
from services.adapters.config import Settings
from services.sandbox.service import app

_log = structlog.get_logger(__name__)

_FATAL_EXIT: Final = 70


def run(settings: Settings) -> None:
    """Runs the sandbox until SIGTERM or SIGINT; one line of log and exit code 70 when its address can't be had."""
    telemetry.setup("sandbox", settings)
    # A hang-up that was asked for is no error.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing response" not in str(record.msg))
    try:
        uvloop.run(http_server.serve(app, settings.host, settings.port))
    except OSError as error:
        _log.critical("sandbox_can_not_run", host=settings.host, port=settings.port, reason=str(error))
        sys.exit(_FATAL_EXIT)
    finally:
        telemetry.shutdown()
