"""How tests run the program, speak to it and read its answers."""

from __future__ import annotations

import csv
import io
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from service.cli.main import main
from service.data.cells import RawTable
from service.data.detect import detect
from service.web import schemas

REPOSITORY = Path(__file__).parents[1]


# The program


def vouch(*arguments):
    """Run the command line in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["vouch", *map(str, arguments)]
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = argv
    return SimpleNamespace(returncode=left.value.code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def free_port() -> int:
    """A port that nothing listens on now.

    Below those that outgoing connections take; and each process that runs tests looks in a range of its own.
    """
    first = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12)
    while True:
        port = first + secrets.randbelow(1_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


SERVE = ("-m", "service.cli", "serve")


@contextmanager
def running_service(
    store: Path, log: Path, command: Sequence[str] = SERVE, without: Sequence[str] = (), **settings: str
):
    """A real server process on loopback; gives a client. It is ended by its id.

    Args:
        command: arguments for Python.
        without: environment variables that it does not get.
    """
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VOUCH_")}
    environment |= {"VOUCH_STORE": str(store), "VOUCH_PORT": str(port), "VOUCH_DRAIN_S": "0"}
    environment |= {f"VOUCH_{name.upper()}": value for name, value in settings.items()}
    environment = {name: value for name, value in environment.items() if name not in without}
    with log.open("ab") as stderr:
        process = subprocess.Popen([sys.executable, *command], env=environment, cwd=REPOSITORY, stderr=stderr)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until_loaded(client, process)
                client.process = process
                yield client
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_loaded(client: httpx.Client, process: subprocess.Popen) -> None:
    """Wait until the models are loaded, or cannot be; at most a minute."""
    for _ in range(600):
        assert process.poll() is None, "the service ended at its start"
        try:
            if client.get("/readyz").json()["status"] != "loading":
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not start within a minute")


def eventually(condition, seconds=10.0):
    """Wait until it is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never was so"
        time.sleep(0.05)


# Requests and answers


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def post_npy(client, path, array, **headers):
    return client.post(path, content=npy(array), headers={"content-type": "application/x-npy", **headers})


def check_problem(answer, status, secret=None):
    """A problem document with the status, that does not repeat the input."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = schemas.Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert problem.type.startswith("urn:vouch:problem:")
    assert problem.request_id == answer.headers["x-request-id"]
    assert len(problem.errors) <= 20
    assert len(answer.content) < 6_000
    if secret is not None:
        assert secret not in answer.text
    return problem


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_bomb(width, height):
    """A valid PNG header that claims a huge image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def detected_cells(texts) -> np.ndarray:
    """A column of a file, as it is read: numbers or text."""
    return detect(RawTable(("x",), (list(texts),))).columns[0].cells


# Files


def as_csv(rows):
    """Dicts with the same keys as a CSV file with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
