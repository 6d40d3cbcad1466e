"""Processes under load: the service and its peers, started on free ports, watched, and ended by their ids."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peers.peers import Peer

HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Server:
    """A running process with its children."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        """The process and its children."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU time of the whole family so far."""
        total = 0.0
        for member in self.family():
            with suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                total += times.user + times.system
        return total

    def memory_mib(self) -> float:
        """Resident memory of the family."""
        total = 0.0
        for member in self.family():
            with suppress(psutil.NoSuchProcess):
                total += member.memory_info().rss / 2**20
        return total

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The sum of the service's metrics that begin so."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@contextmanager
def service(store: Path, log: Path, checkout: Path = HERE.parent, **settings: object) -> Iterator[Server]:
    """The service on a store, with settings; of another checkout, too."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VOUCH_")}
    environment |= {
        "VOUCH_STORE": str(store),
        "VOUCH_PORT": str(port),
        "VOUCH_DRAIN_S": "0",
        "VOUCH_LOG_LEVEL": "WARNING",
    }
    environment |= {f"VOUCH_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "service.cli", "serve"]
    with running("vouch", command, environment, checkout, log, port, f"http://127.0.0.1:{port}/readyz") as server:
        yield server


@contextmanager
def peer_server(peer: Peer, folder: Path, store: Path, model: str, log: Path) -> Iterator[Server]:
    """A peer with our scorer in it; its virtual environment is made where it is not there yet."""
    if not (folder / peer.name / "ready").exists():
        peer.create(folder)
        (folder / peer.name / "ready").touch()
    port = free_port()
    environment = peer.environment(folder, store, model, port)
    with running(peer.name, peer.command(folder, port), environment, folder, log, port, peer.ready_url(port)) as server:
        yield server


@contextmanager
def running(
    name: str, command: list[str], environment: Mapping[str, str], folder: Path, log: Path, port: int, ready_url: str
) -> Iterator[Server]:
    """A process from when it is ready until it and its children have ended."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=dict(environment), cwd=folder, stdout=output, stderr=output)
    server = Server(name, port, process)
    try:
        wait_until_ready(ready_url, process)
        yield server
    finally:
        members = server.family() if process.poll() is None else []
        process.terminate()
        _, alive = psutil.wait_procs(members, timeout=20)
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for a 200, at most two minutes."""
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not become ready")


def connected(server: Server) -> socket.socket:
    """A connection to a server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=120)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_requests(folder: Path, requests: list[tuple[str, dict[str, str], bytes]]) -> Path:
    """A folder of requests for the generator, each of a path, headers and a body."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (path, headers, body) in enumerate(requests):
        (folder / f"{number:03}").write_bytes(request_bytes(path, headers, body))
    return folder


def request_bytes(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])).encode() + body


def generate(
    port: int, requests: Path, clients: int, seconds: float, rate: float = 0.0, count: int = 0
) -> dict[str, Any]:
    """What a load generator, a process of its own, saw."""
    process = start_generator(port, requests, clients, seconds, rate, count)
    output, _ = process.communicate(timeout=seconds + 300)
    seen: dict[str, Any] = json.loads(output)
    return seen


def start_generator(
    port: int, requests: Path, clients: int, seconds: float, rate: float = 0.0, count: int = 0
) -> subprocess.Popen[bytes]:
    """A load generator that runs beside what comes next."""
    options = ["--clients", str(clients), "--seconds", str(seconds), "--rate", str(rate), "--count", str(count)]
    command = [sys.executable, "-m", "load.generator", str(port), str(requests), *options]
    return subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE)
