"""A root file system of Debian bookworm with python3.11, by debootstrap, with this machine's certificates and pip settings.

What the tests of the image and of a fresh machine start from. Standard library only: they run before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("python3", "python3-venv", "python3-distutils", "python3.11", "python3.11-venv", "ca-certificates")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_SETTINGS = ("index-url", "extra-index-url", "find-links", "cert", "constraint", "trusted-host", "proxy")


def install_tools(*tools: str) -> None:
    """Those of Debian that are not there."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def make_base(folder: Path, more: Sequence[str] = ()) -> None:
    """The file system in a folder, made once, with more packages, and this machine's settings in it."""
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            [
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join([*PACKAGES, *more])}",
                "bookworm",
                str(folder),
                *mirror(),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        shutil.rmtree(folder / "var" / "cache" / "apt", ignore_errors=True)
        shutil.rmtree(folder / "var" / "lib" / "apt" / "lists", ignore_errors=True)
        (folder / "made").touch()
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, folder / CERTIFICATES.relative_to("/"))
    settings = pip_settings()
    (folder / "etc" / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{key} = {settings[key]}" for key in settings)]) + "\n"
    )
    for path in paths_of(settings):
        if path.is_file():
            there = folder / path.relative_to("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)


def mirror() -> list[str]:
    """Where this machine's apt finds bookworm; nothing: debootstrap's own default."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)"], check=True, capture_output=True, text=True
    ).stdout
    sites = [line.split()[1] for line in listed.splitlines() if line.split()[0] == "bookworm"]
    return sites[:1]


def pip_settings() -> dict[str, str]:
    """How this machine's pip finds packages, whichever file or variable says it."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    )
    pairs = (line.split("=", 1) for line in listed.stdout.splitlines() if "=" in line)
    values = {key.split(".", 1)[-1]: value.strip("'\"").replace("\\n", " ") for key, value in pairs}
    return {key: values[key] for key in PIP_SETTINGS if key in values}


def paths_of(settings: dict[str, str]) -> set[Path]:
    """Files and folders of this machine that they name."""
    found = (Path(word.removeprefix("file://")) for value in settings.values() for word in value.split())
    return {path for path in found if path.is_absolute() and path.exists()}


def pip_folders() -> list[Path]:
    """Folders of this machine that pip reads while it installs; the files of an index lie beside its pages."""
    folders = (path for path in paths_of(pip_settings()) if path.is_dir())
    return sorted({path.parent if path.name == "simple" else path for path in folders})


def size_of(path: Path) -> int:
    """Bytes of all files below a path, each counted once."""
    if not path.exists():
        return 0
    seen: dict[tuple[int, int], int] = {}
    for file in [path, *path.rglob("*")]:
        status = file.lstat()
        seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def megabytes(size: int) -> str:
    """In millions of bytes."""
    return f"{size / 1e6:.1f} MB"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
