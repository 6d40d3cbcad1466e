"""How programs ask, each in its own way: curl, requests, httpx, aiohttp, fetch, load balancers, browsers.

    python -m tests.web.habits    # the table of docs/http.md

A shell line runs as it stands, in a folder with the files that it names; `localhost:8000` is the service.
"""

import asyncio
import gzip
import io
import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import requests
from backports import zstd
from PIL import Image

JSON = "application/json"
ORIGIN = "https://app.example.org"  # whose pages may ask


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Habit:
    """One way to ask.

    Attributes:
        who: the program.
        sends: the request, as the docs show it.
        gets: what is answered, as the docs say it.
        status: the status that is expected.
        check: whether the reply is what `gets` says.
        ask: makes the request of an address, in a folder; by default `sends` is a line of the shell.
    """

    who: str
    sends: str
    gets: str
    status: int
    check: Callable[[Reply], bool]
    ask: Callable[[str, Path], Reply] | None = None


def shell(line: str, address: str, folder: Path) -> Reply:
    """The reply to a curl line, whose head curl puts before the body."""
    line = line.replace("localhost:8000", address.removeprefix("http://")).replace(
        "curl ", "curl -s -D head -o body ", 1
    )
    for name in ("head", "body"):
        (folder / name).write_bytes(b"")
    subprocess.run(["bash", "-c", line], cwd=folder, check=True, timeout=60)
    return parsed((folder / "head").read_bytes(), (folder / "body").read_bytes())


def parsed(head: bytes, body: bytes) -> Reply:
    """A reply from its bytes; of several heads, the last."""
    *_, last = head.decode().strip().split("\r\n\r\n")
    first, *lines = last.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(first.split()[1]), headers, body)


def raw(text: str, address: str) -> Reply:
    """The reply to bytes as a load balancer sends them."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(text.replace("\n", "\r\n").replace("ADDRESS", f"{host}:{port}").encode())
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return parsed(head, body)


def of_library(answer: Any) -> Reply:
    """The reply that requests or httpx got."""
    return Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, answer.content)


def sending(
    library: Any, name: str, change: Callable[[bytes], Any] = bytes, **headers: str
) -> Callable[[str, Path], Reply]:
    """Ask by a POST of a file, changed in some way, by requests or httpx."""
    key = "content" if library is httpx else "data"
    given = {name.replace("_", "-"): value for name, value in headers.items()}

    def ask(address: str, folder: Path) -> Reply:
        content = {key: change(body(folder, name))}
        return of_library(library.post(f"{address}/score", headers=given, timeout=60, **content))

    return ask


def of_aiohttp(address: str, **options: Any) -> Reply:
    async def ask() -> Reply:
        async with aiohttp.ClientSession() as session, session.post(f"{address}/score", **options) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, headers, await answer.read())

    return asyncio.run(ask())


def node(script: str) -> Callable[[str, Path], Reply]:
    """Ask by a line of JavaScript whose `answer` is the response of fetch."""

    def ask(address: str, folder: Path) -> Reply:
        program = (
            "import {readFileSync} from 'node:fs'; const url = process.argv[1];"
            f"const rows = readFileSync('rows.json', 'utf8'), image = readFileSync('digit.png'); {script};"
            "const headers = Object.fromEntries(answer.headers);"
            "console.log(JSON.stringify([answer.status, headers, await answer.text()]))"
        )
        command = ["node", "--input-type=module", "-e", program, address]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
        status, headers, text = json.loads(done.stdout)
        return Reply(status, headers, text.encode())

    return ask


def make_files(folder: Path, images: np.ndarray) -> None:
    """The files that the requests name, of images with the shape (3, 8, 8)."""
    (folder / "rows.json").write_text(json.dumps({"instances": images.reshape(3, -1).tolist()}))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in images.reshape(3, -1).tolist()))
    (folder / "rows.json.gz").write_bytes(gzip.compress((folder / "rows.json").read_bytes()))
    np.save(folder / "rows.npy", images)
    for name, kind in (("digit.png", "PNG"), ("other.png", "PNG"), ("digit.jpg", "JPEG")):
        Image.fromarray(images[0]).save(folder / name, format=kind)


def body(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def scored(rows: int) -> Callable[[Reply], bool]:
    return lambda reply: len(reply.json()["scores"]) == rows


def warned(kind: str) -> Callable[[Reply], bool]:
    return lambda reply: f"it was read as {kind}" in reply.json()["warnings"][0]


def told(text: str) -> Callable[[Reply], bool]:
    return lambda reply: text in reply.json()["detail"]


def lines(rows: int) -> Callable[[Reply], bool]:
    return lambda reply: len([json.loads(line)["verdict"] for line in reply.content.splitlines()]) == rows


def picture(reply: Reply) -> bool:
    return Image.open(io.BytesIO(reply.content)).format == "PNG"


def ok(reply: Reply) -> bool:
    return reply.json()["status"] == "ok"


def again(address: str, folder: Path) -> Reply:
    with httpx.Client(base_url=address) as client:
        tag = client.get("/models").headers["etag"]
        return of_library(client.get("/models", headers={"if-none-match": tag}))


PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,x-api-key",
}


def preflight(origin: str) -> Callable[[str, Path], Reply]:
    return lambda address, _: of_library(httpx.options(f"{address}/score", headers={"origin": origin, **PREFLIGHT}))


def page(address: str, folder: Path) -> Reply:
    accept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
    return of_library(httpx.get(address, headers={"accept": accept}, follow_redirects=True))


HABITS = (
    Habit("curl", "curl -I localhost:8000/readyz", "the head of GET", 200, lambda reply: "content-length" in reply.headers),
    Habit(
        "curl", "curl -X OPTIONS localhost:8000/sample", "204, `Allow: GET, HEAD, OPTIONS`", 204,
        lambda reply: reply.headers["allow"] == "GET, HEAD, OPTIONS",
    ),
    Habit(
        "curl", "curl localhost:8000/score/ -H 'content-type: application/json' -d @rows.json",
        "a slash at the end means the same", 200, scored(3),
    ),
    Habit(
        "curl", "curl localhost:8000/v1/score -H 'content-type: application/json' -d @rows.json",
        "all paths are also below `/v1`", 200, scored(3),
    ),
    Habit(
        "curl", "curl localhost:8000/score -d @rows.json", "415 with the `-H` that would have worked", 415,
        told("send -H 'content-type: application/json'"),
    ),
    Habit(
        "curl", "curl localhost:8000/score --data-binary @digit.png", "415 with the `-H` that would have worked", 415,
        told("send -H 'content-type: image/png'"),
    ),
    Habit(
        "curl", "curl localhost:8000/score -H 'content-type:' --data-binary @rows.npy",
        "scores: the bytes are plainly npy, and `warnings` says so", 200, warned("application/x-npy"),
    ),
    Habit(
        "curl", "curl localhost:8000/score -H 'content-type: image/jpg' --data-binary @digit.jpg", "scores: it is JPEG",
        200, scored(1),
    ),
    Habit(
        "curl", "curl localhost:8000/score -F file=@digit.png -F file=@other.png",
        "a score for each file, with its name as `id`", 200,
        lambda reply: [score["id"] for score in reply.json()["scores"]] == ["digit.png", "other.png"],
    ),
    Habit(
        "curl", "curl localhost:8000/score -H 'content-type: application/json' -H 'content-encoding: gzip' "
        "--data-binary @rows.json.gz", "scores", 200, scored(3),
    ),
    Habit(
        "curl", "curl --compressed localhost:8000/openapi.json", "gzip, if it is above 10 kB", 200,
        lambda reply: reply.headers["content-encoding"] == "gzip" and reply.json()["openapi"].startswith("3.1"),
    ),
    Habit(
        "curl", "curl localhost:8000/score -H 'content-type: application/jsonl' --data-binary @rows.jsonl",
        "a line for each line", 200, lines(3),
    ),
    Habit("curl", "curl localhost:8000/sample.png?num=4", "a picture, by the path", 200, picture),
    Habit("curl", "curl localhost:8000/version", "the version", 200, lambda reply: "vouch" in reply.json()),
    Habit(
        "curl", "curl -X PUT localhost:8000/score", "405 with `Allow: POST, OPTIONS`", 405,
        lambda reply: reply.headers["allow"] == "POST, OPTIONS",
    ),
    Habit(
        "curl", "curl localhost:8000/v1/models/digits:predict -H 'content-type: application/json' -d @rows.json",
        "`predictions`, for KServe's version 1", 200, lambda reply: len(reply.json()["predictions"]) == 3,
    ),
    Habit(
        "requests", "`requests.post(url, json=rows)`", "scores", 200, scored(3),
        sending(requests, "rows.json", content_type=JSON),
    ),
    Habit(
        "requests", "`requests.post(url, data=json.dumps(rows))`, which declares nothing",
        "scores: it is plainly JSON, and `warnings` says so", 200, warned("application/json"),
        sending(requests, "rows.json", bytes.decode),
    ),
    Habit(
        "requests", '`requests.post(url, files={"file": open("digit.png", "rb")})`', "scores", 200, scored(1),
        lambda address, folder: of_library(
            requests.post(f"{address}/score", files={"file": ("digit.png", body(folder, "digit.png"))}, timeout=60)
        ),
    ),
    Habit(
        "httpx", "an array as `application/octet-stream`", "scores: the bytes are plainly npy", 200,
        warned("application/x-npy"),
        sending(httpx, "rows.npy", content_type="application/octet-stream"),
    ),
    Habit(
        "httpx", "JSON in zstd, `content-encoding: zstd`", "scores", 200, scored(3),
        sending(httpx, "rows.json", zstd.compress, content_type=JSON, content_encoding="zstd"),
    ),
    Habit(
        "httpx", "`GET /models` with the `ETag` of the last answer as `If-None-Match`", "304", 304,
        lambda reply: reply.content == b"", again,
    ),
    Habit(
        "aiohttp", "`session.post(url, json=rows)`", "scores", 200, scored(3),
        lambda address, folder: of_aiohttp(address, json=json.loads(body(folder, "rows.json"))),
    ),
    Habit(
        "aiohttp", "`session.post(url, data=image)`, which declares `application/octet-stream`",
        "scores: the bytes are plainly PNG", 200, warned("image/png"),
        lambda address, folder: of_aiohttp(address, data=body(folder, "digit.png")),
    ),
    Habit(
        "fetch", '`fetch(url, {method: "POST", body: JSON.stringify(rows)})`, which declares `text/plain`',
        "415 with the header that would have worked", 415, told("content-type: application/json"),
        node("const answer = await fetch(url + '/score', {method: 'POST', body: rows})"),
    ),
    Habit(
        "fetch", "a `FormData` with an image", "scores", 200, scored(1),
        node(
            "const form = new FormData(); form.append('file', new Blob([image]), 'digit.png');"
            "const answer = await fetch(url + '/score', {method: 'POST', body: form})"
        ),
    ),
    Habit(
        "fetch", "a `Blob` without a type", "scores: the bytes are plainly PNG", 200, warned("image/png"),
        node("const answer = await fetch(url + '/score', {method: 'POST', body: new Blob([image])})"),
    ),
    Habit(
        "PowerShell", "JSON that begins with a byte order mark, `application/json; charset=utf-8`", "scores",
        200, scored(3),
        sending(httpx, "rows.json", lambda text: b"\xef\xbb\xbf" + text, content_type=f"{JSON}; charset=utf-8"),
    ),
    Habit(
        "an old program", "`application/json; charset=iso-8859-1`", "415: UTF-8 is read",
        415, told("send the body in UTF-8"),
        sending(httpx, "rows.json", content_type=f"{JSON}; charset=iso-8859-1"),
    ),
    Habit(
        "Java", "`GET /models`, `Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2`", "JSON", 200,
        lambda reply: reply.json()["default"] == "digits",
        lambda address, _: of_library(
            httpx.get(f"{address}/models", headers={"accept": "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"})
        ),
    ),
    Habit(
        "HAProxy", "`OPTIONS / HTTP/1.0`, without a Host", "204", 204, lambda reply: True,
        lambda address, _: raw("OPTIONS / HTTP/1.0\n\n", address),
    ),
    Habit(
        "a cloud's load balancer", "`GET /health` under its own address", "200 when the service is ready", 200, ok,
        lambda address, _: raw(
            "GET /health HTTP/1.1\nHost: 10.0.3.7\nConnection: close\nUser-Agent: ELB-HealthChecker/2.0\n\n", address
        ),
    ),
    Habit(
        "Kubernetes", "`GET /healthz`", "200 when the service is alive", 200, ok,
        lambda address, _: raw(
            "GET /healthz HTTP/1.1\nHost: ADDRESS\nUser-Agent: kube-probe/1.31\nAccept: */*\nConnection: close\n\n", address
        ),
    ),
    Habit(
        "nginx", "`HEAD /readyz HTTP/1.0`", "200", 200, lambda reply: reply.content == b"",
        lambda address, _: raw("HEAD /readyz HTTP/1.0\nHost: upstream\n\n", address),
    ),
    Habit(
        "a browser", "the address alone", "the console", 200,
        lambda reply: b"console/app.js" in reply.content, page,
    ),
    Habit(
        "a browser", "a page of an origin in `VOUCH_CORS_ORIGINS` asks first (`OPTIONS`)", "it may ask", 200,
        lambda reply: reply.headers["access-control-allow-origin"] == ORIGIN, preflight(ORIGIN),
    ),
    Habit(
        "a browser", "a page of another origin asks first", "it may not", 400,
        lambda reply: "access-control-allow-origin" not in reply.headers, preflight("https://evil.example"),
    ),
)  # fmt: skip


def table() -> list[str]:
    """The lines of the table in docs/http.md."""
    shown = [f"`{one.sends}`" if one.ask is None else one.sends for one in HABITS]
    rows = [f"| {one.who} | {request} | {one.gets} |" for one, request in zip(HABITS, shown, strict=True)]
    return ["| who | sends | gets |", "|---|---|---|", *rows]


if __name__ == "__main__":
    print("\n".join(table()))
