"""Run the service: uvicorn, JSON logs and signals."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import logging.config
import math
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

import uvicorn
from pythonjsonlogger.json import JsonFormatter

from service.serving.batching import STOP_S
from service.settings import Settings, SettingsError
from service.web.app import create_app
from service.web.connection_limits import protocol_with
from service.web.context import Service

LAST_S = 10.0  # for what follows the last answer: the drift monitors' state, the threads' end
log = logging.getLogger("vouch")


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; accepted requests are finished first.

    Raises:
        SettingsError: the address is taken; or it is not loopback, and there are neither keys nor `allow_anonymous`.
        JournalError: another process writes the journal.
    """
    check_address(settings)
    check_is_free(settings.host, settings.port)
    logging.config.dictConfig(log_config(settings.log_level))
    logging.captureWarnings(True)  # write libraries' warnings to the log as well
    app = create_app(settings)
    app.state.service.engine.recorder.open()  # before uvicorn, which would answer what is wrong with a traceback
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol_with(settings.max_header_bytes, settings.header_timeout_s),
        ws="none",
        log_config=None,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        access_log=False,  # ours has the request id and the timings
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 5,  # stalled clients are cut off then
    )
    # Hand the interpreter over sooner than after the default 5 ms: the event loop has little to do, and two inference
    # threads are 6 % faster this way.
    sys.setswitchinterval(0.0005)
    Server(config, app.state.service).run()


class Server(uvicorn.Server):
    """uvicorn, except that SIGTERM first makes `/readyz` answer 503, and SIGHUP reads the keys and the store again.

    uvicorn itself closes its listener at once. A load balancer takes a moment to notice `/readyz`, and sends requests until
    then.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.drains_until: float | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Start uvicorn, and handle SIGHUP."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.service.reload_requested.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM drains first; a second one, or SIGINT, does not wait. The exit status is 0."""
        if sig == signal.SIGTERM and self.started and not self.service.draining:
            self.service.draining = True
            self.drains_until = time.monotonic() + self.service.settings.drain_s
            graceful_s = self.config.timeout_graceful_shutdown or 0
            exit_after(self.service.settings.drain_s + graceful_s + STOP_S + LAST_S)
        else:
            self.force_exit = self.should_exit
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to exit; uvicorn asks ten times a second."""
        if self.drains_until is not None and time.monotonic() >= self.drains_until:
            self.should_exit = True
        return await super().on_tick(counter)


def exit_after(seconds: float) -> None:
    """End the process after so many seconds, whatever hangs in it."""

    def end() -> None:
        time.sleep(seconds)
        log.error("the shutdown hangs: ending the process")
        logging.shutdown()
        os._exit(1)

    threading.Thread(target=end, name="exit", daemon=True).start()


def check_address(settings: Settings) -> None:
    """Raise if the service would listen beyond loopback without keys, unless that is explicitly allowed."""
    if settings.api_keys_file is None and not settings.allow_anonymous and not is_loopback(settings.host):
        raise SettingsError(
            f"VOUCH_HOST: {settings.host} is not loopback and there are no keys: set VOUCH_API_KEYS_FILE, or "
            "VOUCH_ALLOW_ANONYMOUS=1 to allow every caller"
        )


def check_is_free(host: str, port: int) -> None:
    """Raise if the address cannot be listened on.

    uvicorn would tell only after the models were loaded, and torch's threads would then abort the process.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingsError(
            f"VOUCH_HOST, VOUCH_PORT: {host}:{port} cannot be listened on, {reason}: choose another, such as --port 8001"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class LineFormatter(JsonFormatter):
    """One JSON object a line. A field of a message cannot replace the line's own: its level, for example."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Add a message's fields; those that are called like the line's own get an underscore."""
        for name in ("level", "logger", "time"):
            if name in record.__dict__:
                record.__dict__[f"{name}_"] = record.__dict__.pop(name)
        super().add_fields(log_data, record, message_dict)


def log_config(level: str) -> dict[str, Any]:
    """Logging configuration: one JSON object per line on stderr."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": "service.web.server.LineFormatter",
                "format": "%(levelname)s %(name)s %(message)s",
                "rename_fields": {"levelname": "level", "name": "logger"},
                "timestamp": "time",
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
    }
