"""Bodies that are made to cost much, beside a prober of /livez; and one hostile key beside another."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from load.probe import quantiles_of
from load.servers import HERE, Server, generate, request_bytes, service, start_generator
from peers.peers import by_type
from service.store.loading import load_scorer
from service.store.store import Store

CLIENTS, TRIES, SECONDS = 8, 16, 4.0
BYTES = 2**25 - 2**10  # just below the usual limit on bodies
LIMIT_MIB = 2048
IDLE_S, ALLOWED_S = 5.0, 0.1
HOSTILE_CLIENTS = 64
TIMEOUT = {"X-Request-Timeout": "3"}
JSON, CSV, NPY = ({"Content-Type": kind, **TIMEOUT} for kind in ("application/json", "text/csv", "application/x-npy"))
Body = tuple[str, dict[str, str], bytes]


def filled(head: bytes, unit: bytes, tail: bytes, size: int = BYTES) -> bytes:
    """A body of some size: a head, one thing again and again, and a tail."""
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


def bodies(store: Path) -> dict[str, Body]:
    """The bodies by name, for the bundled models `mnist` and `adult`."""
    infer, rows = "/v2/models/mnist/infer", b'{"instances": ['
    tensor = b'{"inputs": [{"name": "rows", "datatype": "FP32", "shape": [1, 784], "data": ['
    shape = b'{"inputs": [{"name": "rows", "datatype": "FP32", "data": [1], "shape": ['
    person = load_scorer(Store(store), "adult", "cpu", threads=1)
    names = [str(person.model.input.column(at)) for at in range(person.model.input.features)]
    people = person.model.input.cells(person.sample(50, seed=1).samples)
    one = json.dumps([dict(zip(names, row, strict=True)) for row in people])[1:-1].encode() + b","
    return {
        "lengths of a shape": (infer, JSON, filled(shape, b"9223372036854775807,", b"1]}]}", 2_300_000)),
        "numbers of a tensor": (infer, JSON, filled(tensor, b"1,", b"1]}]}")),
        "lists of a tensor": (infer, JSON, filled(tensor, b"[],", b"[]]}]}")),
        "inputs": (infer, JSON, filled(b'{"inputs": [', b"{},", b"{}]}")),
        "empty latents": ("/decode", JSON, filled(b'{"latents": [', b"[],", b"[]]}")),
        "empty rows": ("/score", JSON, filled(rows, b"[],", b"[]]}")),
        "empty objects": ("/score?model=adult", JSON, filled(rows, b"{},", b"{}]}")),
        "one long row": ("/score", JSON, filled(rows + b"[", b"1,", b"1]]}")),
        "one long text": ("/score?model=adult", JSON, filled(rows + b'"', b"x", b'"]}')),
        "escaped quotes": ("/score?model=adult", JSON, filled(rows, b'"' + b'\\"' * 500_000 + b'",', b"1]}")),
        "one long number": ("/score", JSON, filled(rows + b"[", b"1", b"]]}")),
        "brackets": ("/score", JSON, filled(rows, b"[", b"")),
        "white space": ("/score", JSON, filled(rows, b" ", b"]}")),
        "ten thousand digits": ("/score", JSON, filled(rows, b"[" + b"0," * 783 + b"255],", b"[1]]}", 15_000_000)),
        "ten thousand people": ("/score?model=adult", JSON, filled(rows, one, one[:-1] + b"]}", 3_000_000)),
        "an array of digits": ("/score", NPY, array(10_000)),
        "a narrow table": ("/score?model=adult", CSV, filled(b"age,sex\n", b"1,2\n", b"")),
        "a wide table": ("/score?model=adult", CSV, filled(b"", b"a,", b"b\n1,2\n")),
        "a table of quotes": ("/score?model=adult", CSV, filled(b"age,sex\n", b'"",""\n', b"")),
        "a table that is no text": (
            "/score?model=adult",
            CSV,
            filled(b"age,sex\n", b"\xe9\x81,\xff\n", b"", 2_000_000),
        ),
        "a picture of 4,000,000 zeros": ("/score", {"Content-Type": "image/png", **TIMEOUT}, picture(2000)),
        "reconstructions": ("/reconstruct", NPY, array(2_000)),
        "an alias": ("/models/mnist/aliases", JSON, filled(b'{"alias": "', b"x", b'", "version": "1"}')),
    }


def array(rows: int) -> bytes:
    """Digits of noise as npy."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).integers(0, 256, (rows, 784), dtype=np.uint8))
    return buffer.getvalue()


def picture(side: int) -> bytes:
    """A black PNG of side x side pixels, which takes a few kilobytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress((b"\0" + bytes(side)) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def attack(store: Path, work: Path, rounds: int, threads: int) -> list[str]:
    """Send each body from eight clients at a time; the answers, the prober's longest wait, and the peak memory."""
    folders = {}
    for name, body in bodies(store).items():
        folders[name] = work / "attack" / name.replace(" ", "-")
        folders[name].mkdir(parents=True)
        (folders[name] / "0").write_bytes(request_bytes(*body))
    counts: dict[str, Counter[str]] = {name: Counter() for name in folders}
    stalls: dict[str, list[float]] = {name: [] for name in ("idle", *folders)}
    with service(store, work / "attack.log", threads=threads) as server:
        limit = limited(server)
        for _ in range(rounds):
            with_probe = probing(server, IDLE_S)
            stalls["idle"].append(quantiles_of(with_probe)["longest_s"])
            for name, folder in folders.items():
                probe = start_probe(server)
                seen = generate(server.port, folder, CLIENTS, SECONDS, count=TRIES)
                stalls[name].append(quantiles_of(stopped(probe))["longest_s"])
                counts[name].update(seen["counts"])
        peak = peak_mib(server)
        alive = server.process.poll() is None and server.get("/readyz")[0] == 200
    return report(counts, stalls, peak, limit, alive)


def report(
    counts: dict[str, Counter[str]], stalls: dict[str, list[float]], peak: float, limit: str, alive: bool
) -> list[str]:
    """The table of all bodies, and what they amount to."""
    idle = float(np.median(stalls["idle"]))
    rows, tries, failures = [], 0, 0
    for name, count in counts.items():
        wrong = sum(number for status, number in count.items() if status in ("500", "0", "failed"))
        tries, failures = tries + sum(count.values()), failures + wrong
        answers = ", ".join(f"{number} x {status}" for status, number in sorted(count.items()))
        rows.append(f"| {name} | {answers} | {1e3 * float(np.median(stalls[name])):.0f} |")
    longest = [max(found[at] for name, found in stalls.items() if name != "idle") for at in range(len(stalls["idle"]))]
    most, was = 1e3 * float(np.median(longest)), 1e3 * idle
    return [
        f"- {tries:,} tries, {failures} failures (no answer, or 500); the service {'is ready' if alive else 'has ENDED'}",
        f"- the longest /livez of a round, in the median of {len(longest)} rounds: {most:.0f} ms, idle {was:.0f} ms: "
        f"{most - was:.0f} ms longer (allowed: {1e3 * ALLOWED_S:.0f})",
        f"- peak memory {peak:.0f} MiB of {LIMIT_MIB} ({limit})",
        "",
        f"| body, {CLIENTS} at a time | answers | longest /livez, ms, median of rounds |",
        "|---|---|--:|",
        *rows,
    ]


# A prober in a process of its own


def start_probe(server: Server) -> subprocess.Popen[bytes]:
    """A prober that runs until it is told to stop."""
    command = [sys.executable, "-m", "load.probe", str(server.port)]
    process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    return process


def stopped(probe: subprocess.Popen[bytes]) -> bytes:
    """What a prober saw."""
    output, _ = probe.communicate(b"\n", timeout=60)
    return output


def probing(server: Server, seconds: float) -> bytes:
    """What a prober sees for some seconds."""
    probe = start_probe(server)
    time.sleep(seconds)
    return stopped(probe)


# Memory


def limited(server: Server) -> str:
    """Bound the server's memory by a cgroup, if this machine lets us; says how it is bounded."""
    folder = Path("/sys/fs/cgroup") / f"vouch-attack-{server.process.pid}"
    try:
        folder.mkdir()
        (folder / "memory.max").write_text(str(LIMIT_MIB * 2**20))
        (folder / "cgroup.procs").write_text(str(server.process.pid))
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        return "not enforced: no cgroup may be made here; peak resident memory"
    return "enforced by a cgroup; peak resident memory"


def peak_mib(server: Server) -> float:
    """The most resident memory that the server ever had."""
    with suppress(OSError):
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return math.nan


# Fairness


def fair(store: Path, model: str, work: Path, seconds: float, threads: int) -> list[str]:
    """One client with one row, alone and beside a key with 64 connections of the dearest rows and bodies."""
    scorer = load_scorer(Store(store), model, "cpu", threads=1)
    rows = np.rint(scorer.sample(64, seed=11).samples).astype(np.uint8)
    keys = work / "fair-keys"
    keys.write_text(
        "".join(f"{hashlib.sha256(name.encode()).hexdigest()} score id={name}\n" for name in ("good", "bad"))
    )
    plain, detailed = by_type(f"/score?model={model}"), by_type(f"/score?model={model}&rule=combined&explain=3")
    good = folder_of(work / "fair-good", [keyed(plain(rows[at : at + 1], "json"), "good") for at in range(64)])
    blank = np.zeros((32, *rows.shape[1:]), np.uint8)
    bad = [plain(blank, "binary"), detailed(blank, "json")]
    dear = bodies(store)
    bad += [dear[name] for name in ("ten thousand digits", "ten thousand people", "escaped quotes", "empty rows")]
    hostile = folder_of(work / "fair-bad", [keyed(body, "bad") for body in bad])
    ratios, lines = [], []
    with service(store, work / "fair.log", threads=threads, api_keys_file=keys) as server:
        generate(server.port, good, 1, 2)
        for _ in range(3):
            alone = generate(server.port, good, 1, seconds)
            load = start_generator(server.port, hostile, HOSTILE_CLIENTS, seconds + 10)
            time.sleep(5)
            beside = generate(server.port, good, 1, seconds)
            load.communicate(timeout=seconds + 300)
            ratios.append(beside["p99_s"] / alone["p99_s"])
            lines.append(
                f"| {1e3 * alone['p50_s']:.0f} | {1e3 * alone['p99_s']:.0f} | {1e3 * beside['p50_s']:.0f} | "
                f"{1e3 * beside['p99_s']:.0f} | {ratios[-1]:.2f} | {beside['counts']} |"
            )
    return [
        f"- one row of `{model}` from one client; beside it another key with {HOSTILE_CLIENTS} connections of blank images "
        "(32 rows, some explained and by the combined rule), large JSON bodies and hostile ones",
        f"- p99 is {np.median(ratios):.2f} times that of it alone, in the median of {len(ratios)} rounds (target: 3)",
        "",
        "| alone: p50 ms | p99 ms | beside: p50 ms | p99 ms | p99 ratio | answers |",
        "|--:|--:|--:|--:|--:|---|",
        *lines,
    ]


def keyed(body: Body, key: str) -> Body:
    """A request with a key."""
    path, headers, content = body
    return path, {**headers, "X-API-Key": key}, content


def folder_of(folder: Path, requests: list[Body]) -> Path:
    """A folder of requests for the generator."""
    folder.mkdir(parents=True)
    for number, body in enumerate(requests):
        (folder / f"{number:03}").write_bytes(request_bytes(*body))
    return folder
