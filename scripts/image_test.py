"""Build the images without a Docker engine, look into them, run them, and stop them: buildah over a base by debootstrap.

    scripts/image-test [--keep] [--base FOLDER]

As root, on Debian. The stand-in for the base image is Debian's own python3.11, with this machine's certificates and pip
settings; none of that is in the Dockerfile. What is checked and measured is printed, a line each; the first that does not
hold ends the test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from debian_base import free_port, install_tools, make_base, megabytes, pip_folders, size_of

ROOT = Path(__file__).resolve().parents[1]
BASE, IMAGE, GATE = "localhost/vouch-test-base", "localhost/vouch-test", "localhost/vouch-test-gate"
USER, GATE_USER = 10001, 10002
MOST_ADDED, MOST_WITHOUT_TORCH = 1_050_000_000, 120_000_000  # bytes that the final stage adds to its base
READY_S = 4.0
# torch's own requirements, and numpy, without which it warns and cannot give arrays back.
TORCH_AND_ITS_OWN = (
    *("torch", "torchgen", "functorch", "numpy", "numpy.libs", "sympy", "mpmath", "networkx", "jinja2", "markupsafe"),
    *("fsspec", "filelock"),
)
UNWANTED = ("gcc", "cc", "g++", "make", "pip", "pip3", "git")
UNWANTED_PACKAGES = (
    "pip",
    "setuptools",
    "pytest",
    "scipy",
    "sklearn",
    "pyarrow",
    "matplotlib",
    "pandas",
    "s3fs",
    "nvidia",
    "triton",
)


def main() -> None:
    """Build, check, run, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("/var/tmp/vouch-test-base"), help="kept for the next time")
    parser.add_argument("--keep", action="store_true", help="keep the image and what it was built from")
    options = parser.parse_args()
    started = time.monotonic()
    install_tools("buildah", "debootstrap")
    make_base(options.base)
    say(f"base: Debian bookworm with python3.11, {megabytes(size_of(options.base))}")
    try:
        make_base_image(options.base)
        build(IMAGE, "Dockerfile", "TORCH_INDEX=")
        build(GATE, "examples/gate/Dockerfile")
        check_configuration()
        with mounted(IMAGE) as root, mounted(GATE) as gate:
            check_contents(root)
            check_sizes(root, options.base)
            run_it(root, gate)
    finally:
        if not options.keep:
            buildah("rmi", "--force", GATE, IMAGE, BASE, check=False)
            buildah("rmi", "--prune", "--force", check=False)
    say(f"passed in {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    """A line."""
    print(f"image-test: {text}", flush=True)


def require(holds: bool, text: str) -> None:
    """A check, with what it found."""
    if not holds:
        fail(text)
    say(text)


def fail(text: str) -> NoReturn:
    """The end."""
    sys.exit(f"image-test: FAILED: {text}")


def buildah(*arguments: str, check: bool = True, quiet: bool = True) -> str:
    """What a buildah command prints."""
    done = subprocess.run(["buildah", *arguments], check=False, capture_output=quiet, text=True, cwd=ROOT)
    if check and done.returncode:
        sys.exit(
            f"image-test: buildah {arguments[0]} failed:\n{(done.stdout or '')[-4000:]}{(done.stderr or '')[-4000:]}"
        )
    return (done.stdout or "").strip()


# The image


def make_base_image(base: Path) -> None:
    """The base as an image."""
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(base), "/")
    buildah("commit", "--quiet", "--rm", container, BASE)


def build(image: str, dockerfile: str, *arguments: str) -> None:
    """A Dockerfile, as it stands."""
    start = time.monotonic()
    volumes = [part for folder in pip_folders() for part in ("--volume", f"{folder}:{folder}:ro")]
    given = [part for argument in (f"BASE_IMAGE={BASE}", *arguments) for part in ("--build-arg", argument)]
    buildah(
        *("build", "--isolation", "chroot", "--format", "docker", "--layers", "--no-cache", "--tag", image),
        *("--file", dockerfile, *given, *volumes, "."),
    )
    say(f"{dockerfile}: built in {time.monotonic() - start:.0f} s")


def configuration(image: str = IMAGE) -> dict[str, Any]:
    """What an image says of itself."""
    return json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]


def check_configuration() -> None:
    """User, probe, entrypoint, labels."""
    config = configuration()
    require(config["User"] == f"{USER}:{USER}", f"user {config['User']}")
    require(config["Entrypoint"] == ["vouch"] and config["Cmd"] == ["serve"], "entrypoint `vouch serve`")
    require(config.get("StopSignal") == "SIGTERM", "stops on SIGTERM")
    require(bool(config.get("Healthcheck", {}).get("Test")), "has a HEALTHCHECK")
    labels = config["Labels"]
    version = labels.get("org.opencontainers.image.version")
    require(version == project_version(), f"label: version {version}")
    require(labels.get("org.opencontainers.image.licenses") == "Apache-2.0", "label: Apache-2.0")


def project_version() -> str:
    """As pyproject.toml has it."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


@contextlib.contextmanager
def mounted(image: str) -> Iterator[Path]:
    """The root of a container of the image."""
    container = buildah("from", "--pull-never", image)
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("rm", container, check=False)


def packages_of(root: Path) -> Path:
    """Where the image's packages are."""
    return root / "opt/vouch/lib/python3.11/site-packages"


def check_contents(root: Path) -> None:
    """No compiler, no tests, no caches, no extras."""
    tools = [
        name
        for name in UNWANTED
        for folder in ("bin", "usr/bin", "usr/local/bin", "opt/vouch/bin")
        if (root / folder / name).exists()
    ]
    require(not tools, f"no compiler and no installer: {tools or 'none'}")
    packages = packages_of(root)
    extras = [name for name in UNWANTED_PACKAGES if (packages / name).exists()]
    require(not extras, f"no extras and no test tools: {extras or 'none'}")
    ours = [
        str(path.relative_to(root)) for path in root.rglob("tests/conftest.py") if "site-packages" not in path.parts
    ]
    require(not ours, "none of our tests")
    theirs = [path.name for path in packages.rglob("tests") if path.is_dir()]
    require(not theirs, "and none of the libraries'")
    caches = [
        path
        for name in ("root/.cache", "home", "tmp", "var/cache/apt/archives")
        for path in (root / name).glob("**/*")
        if path.is_file()
    ]
    require(not caches, "no caches")
    owned = [path for path in (root / "opt/vouch").rglob("*") if path.lstat().st_uid == USER]
    require(not owned, "the program belongs to root: its user cannot change it")


def check_sizes(root: Path, base: Path) -> None:
    """What the final stage adds, layer by layer."""
    for layer in layers():
        say(f"layer: {layer}")
    added, packages = size_of(root) - size_of(base), packages_of(root)
    torch = sum(size_of(packages / name) for name in TORCH_AND_ITS_OWN)
    require(added <= MOST_ADDED, f"adds {megabytes(added)} to its base, at most {megabytes(MOST_ADDED)}")
    rest = added - torch
    say(f"torch and what it needs, numpy among it: {megabytes(torch)}")
    require(rest <= MOST_WITHOUT_TORCH, f"without these {megabytes(rest)}, at most {megabytes(MOST_WITHOUT_TORCH)}")
    others = {path.name: size_of(path) for path in packages.iterdir() if path.name not in TORCH_AND_ITS_OWN}
    others["model_store"] = size_of(root / "model_store")
    largest = sorted(others, key=lambda name: -others[name])[:12]
    say("of that: " + ", ".join(f"{name} {megabytes(others[name])}" for name in largest))


def layers() -> list[str]:
    """The unpacked size of each layer, with the step that made it."""
    manifest = json.loads(buildah("inspect", "--type", "image", IMAGE))
    steps = [entry["created_by"] for entry in manifest["Docker"]["history"] if not entry.get("empty_layer")]
    store = json.loads(subprocess.run(["buildah", "info"], check=True, capture_output=True, text=True).stdout)["store"]
    listed = json.loads((Path(store["GraphRoot"]) / f"{store['GraphDriverName']}-layers" / "layers.json").read_text())
    by_digest = {entry.get("diff-digest"): entry.get("diff-size", 0) for entry in listed}
    found = [by_digest.get(digest, 0) for digest in manifest["Docker"]["rootfs"]["diff_ids"]]
    return [f"{megabytes(size)}  {step[:90]}" for size, step in zip(found, steps, strict=False)]


# Running


def run_it(root: Path, gate: Path) -> None:
    """Start as its user on a file system that cannot be written to, ask, also through the gate, and stop."""
    config, port = configuration(), free_port()
    inside = confined(root, USER, {"VOUCH_PORT": str(port), "VOUCH_HOST": "127.0.0.1"}, config)
    check_confinement(inside)
    probe = [*inside, *config["Healthcheck"]["Test"][1:]]
    with tempfile.TemporaryDirectory() as folder:
        log, start = Path(folder) / "log", time.monotonic()
        with running([*inside, *config["Entrypoint"], *config["Cmd"]], log) as service:
            wait_until_answered(service, f"http://127.0.0.1:{port}/readyz", log)
            seconds = time.monotonic() - start
            say(f"ready {seconds:.1f} s after its start (wanted: {READY_S:.0f} s on two quiet cores)")
            require(healthy(probe), "HEALTHCHECK's command says healthy")
            ask(port)
            ask_gate(gate, port, Path(folder) / "gate-log")
            os.kill(child_of(service.pid, "vouch"), signal.SIGTERM)
            status = service.wait(60)
            require(status == 0, f"SIGTERM ends it with status {status}")
        check_log(log.read_text())
    require(not healthy(probe), "and unhealthy once it has ended")


def healthy(probe: list[str]) -> bool:
    """Whether the HEALTHCHECK's command says so."""
    return subprocess.run(probe, check=False, env={}, capture_output=True).returncode == 0


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with those that it starts, which are ended by their group's id if they have not ended themselves."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={}, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def confined(root: Path, user: int, settings: dict[str, str], config: dict[str, Any]) -> list[str]:
    """A command's beginning: as a user in a root that is read-only but for what is in memory: /tmp, and a gate's folder."""
    environment = dict(entry.split("=", 1) for entry in config["Env"]) | settings
    script = (
        'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t tmpfs tmpfs "$0/tmp" '
        f'&& {{ test ! -d "$0/gate" || mount -t tmpfs -o uid={user} tmpfs "$0/gate"; }} '
        '&& mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" '
        f'&& exec chroot --userspec={user}:{user} "$0" /usr/bin/env -i "$@"'
    )
    pairs = [f"{name}={value}" for name, value in environment.items()]
    return [shutil.which("unshare") or "unshare", "--mount", "/bin/sh", "-c", script, str(root), *pairs]


def check_confinement(inside: list[str]) -> None:
    """Who runs, and what it can write."""
    code = (
        "import os, tempfile\n"
        "places = ['/', '/opt/vouch', '/model_store', '/etc', '/var', '/tmp']\n"
        "def writes(place):\n"
        "    try:\n"
        "        tempfile.TemporaryFile(dir=place).close()\n"
        "        return True\n"
        "    except OSError:\n"
        "        return False\n"
        "print(os.getuid(), os.getgid(), *filter(writes, places))\n"
    )
    printed = subprocess.run(
        [*inside, "python3", "-c", code], check=True, capture_output=True, text=True, env={}
    ).stdout
    require(printed.split() == [str(USER), str(USER), "/tmp"], f"runs as {USER} and can write to /tmp alone")


def child_of(pid: int, name: str) -> int:
    """The process that serves, among a process and what it became."""
    for entry in [pid, *map(int, children(pid))]:
        if name in Path(f"/proc/{entry}/cmdline").read_bytes().decode():
            return entry
    fail("the service's process is not there")


def children(pid: int) -> list[str]:
    """Of one process."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_until_answered(service: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until a GET succeeds."""
    for _ in range(600):
        if service.poll() is not None:
            fail(f"it ended by itself:\n{log.read_text()[-4000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.05)
    fail(f"not ready after 30 s:\n{log.read_text()[-4000:]}")


def ask(port: int) -> None:
    """Real digits, and images that are none."""
    verdicts: dict[str, list[str]] = {"valid": [], "invalid": []}
    for kind, found in verdicts.items():
        for path in sorted((ROOT / "examples" / kind).glob("*.png")):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/score?rule=combined&false_alarm=0.01",
                path.read_bytes(),
                {"content-type": "image/png"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                found.append(json.load(answer)["scores"][0]["verdict"])
    right = {kind: found.count(kind) for kind, found in verdicts.items()}
    total = sum(map(len, verdicts.values()))
    require(sum(right.values()) >= total - 1, f"of {total} images, {sum(right.values())} are told right")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/score",
        (ROOT / "examples" / "digits.npy").read_bytes(),
        {"content-type": "application/x-npy"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        scores = json.load(answer)["scores"]
    require(len(scores) == 10 and all(score["log_likelihood"] < 0 for score in scores), "ten digits as npy are scored")


def ask_gate(root: Path, service_port: int, log: Path) -> None:
    """The demo application's image beside the service's."""
    config, port = configuration(GATE), free_port()
    require(config["User"] == f"{GATE_USER}:{GATE_USER}", f"the gate's user is {config['User']}")
    torch = list(root.glob("opt/gate/lib/python3*/site-packages/torch"))
    require(not torch, f"the gate has no torch, {megabytes(size_of(root / 'opt/gate'))} in all")
    inside = confined(
        root, GATE_USER, {"VOUCH_URL": f"http://127.0.0.1:{service_port}", "GATE_DEADLINE_S": "10"}, config
    )
    command = [str(port) if part == "8080" else part for part in config["Entrypoint"]]
    with running([*inside, *command], log) as gate:
        wait_until_answered(gate, f"http://127.0.0.1:{port}/livez", log)
        places = {}
        for name in ("valid/digit-7", "invalid/boot"):
            body = (ROOT / "examples" / f"{name}.png").read_bytes()
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/images", body), timeout=30
            ) as answer:
                places[name] = json.load(answer)["place"]
        wanted = {"valid/digit-7": "inbox", "invalid/boot": "quarantine"}
        require(places == wanted, f"through the gate: {places}")


def check_log(text: str) -> None:
    """Lines of JSON, with what was asked and that it ended, and nothing that went wrong."""
    lines = [json.loads(line) for line in text.splitlines()]
    bad = [line for line in lines if line.get("level", line.get("levelname")) in ("WARNING", "ERROR", "CRITICAL")]
    require(not bad, f"{len(lines)} log lines, all JSON, none of them a warning: {bad or 'none'}")
    requests = [line for line in lines if line.get("path") == "/score"]
    require(len(requests) >= 17, f"{len(requests)} of them tell of scores")


if __name__ == "__main__":
    main()
