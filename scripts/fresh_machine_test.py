"""The README's two commands on a machine that has only Debian's python3.11, venv, git and make: in a clean chroot.

    scripts/fresh-machine-test [--only serve] [--base FOLDER]

As root, on Debian. Clones what is committed here, starts `make serve`, asks it, stops it, and runs `make test`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from debian_base import free_port, install_tools, make_base, pip_folders

ROOT = Path(__file__).resolve().parents[1]
MORE = ("git", "make")
CLONE = Path("home") / "vouch"  # in the machine
START_S, TEST_S = 900, 3000


def main() -> None:
    """Make the machine, run the two commands in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path("/var/tmp/vouch-fresh-base"), help="kept for the next time")
    parser.add_argument("--only", choices=("serve", "test"), help="one of the two commands")
    options = parser.parse_args()
    install_tools("debootstrap", "git")
    make_base(options.base, MORE)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        machine = Path(folder) / "root"
        subprocess.run(["cp", "-a", str(options.base), str(machine)], check=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(machine / CLONE)], check=True)
        if options.only != "test":
            serve(machine)
        if options.only != "serve":
            test(machine)
    say("passed")


def say(text: str) -> None:
    """A line."""
    print(f"fresh-machine-test: {text}", flush=True)


def inside(root: Path, command: str, **variables: str) -> list[str]:
    """A command line in the clone, in the machine."""
    binds = " ".join(
        f'&& mkdir -p "$0{folder}" && mount --bind -o ro "{folder}" "$0{folder}"' for folder in pip_folders()
    )
    script = (
        f'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && cp /etc/resolv.conf "$0/etc/resolv.conf" {binds} '
        '&& exec chroot "$0" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"'
    )
    pairs = [f"{name}={value}" for name, value in variables.items()]
    unshare = [shutil.which("unshare") or "unshare", "--mount", "/bin/sh", "-c", script, str(root)]
    return [*unshare, *pairs, "/bin/sh", "-c", f"cd /{CLONE} && {command}"]


def serve(machine: Path) -> None:
    """`make serve`, a digit, and SIGINT, as Ctrl-C sends it."""
    start, port = time.monotonic(), free_port()
    process = subprocess.Popen(inside(machine, "exec make serve", VOUCH_PORT=str(port)), start_new_session=True)
    try:
        wait_until_ready(process, port)
        say(f"`make serve` answers after {time.monotonic() - start:.0f} s")
        body = (ROOT / "examples" / "valid" / "digit-7.png").read_bytes()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/score", body, {"content-type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            score = json.load(answer)["scores"][0]
        say(f"a digit has log p(x) = {score['log_likelihood']:.2f}, {score['verdict']}")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it answers, installed and started."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            sys.exit(f"fresh-machine-test: FAILED: `make serve` ended with status {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
            return
        time.sleep(0.5)
    sys.exit(f"fresh-machine-test: FAILED: `make serve` does not answer after {START_S} s")


def test(machine: Path) -> None:
    """`make test`."""
    start = time.monotonic()
    done = subprocess.run(inside(machine, "exec make test"), check=False, timeout=TEST_S)
    if done.returncode:
        sys.exit(f"fresh-machine-test: FAILED: `make test` ended with status {done.returncode}")
    say(f"`make test` passed in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
