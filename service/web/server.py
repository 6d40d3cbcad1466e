"""Run the service: uvicorn, JSON logs, and a listener on the port that was asked for."""

from __future__ import annotations

import logging
import logging.config
import math
from typing import Any

import uvicorn

from service.settings import Settings
from service.web.app import create_app


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is finished first."""
    logging.config.dictConfig(log_config(settings.log_level))
    logging.captureWarnings(True)  # libraries' warnings are lines of the log as well
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,  # ours has the request id and the timings
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 5,  # whoever stalls longer is cut off
    )


def log_config(level: str) -> dict[str, Any]:
    """One JSON object a line on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": "pythonjsonlogger.json.JsonFormatter",
                "format": "%(levelname)s %(name)s %(message)s",
                "rename_fields": {"levelname": "level", "name": "logger"},
                "timestamp": "time",
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
    }
