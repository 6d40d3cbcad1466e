"""Packaging: the console's files lie compressed in the wheel; everything else is in pyproject.toml."""

import gzip
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONSOLE = "service/console/static"
WORTH_IT = (".css", ".html", ".js", ".mjs", ".svg")


class BuildPy(build_py):
    """Copies the package, and adds what the service sends to browsers that accept gzip."""

    def run(self) -> None:
        """Copy, and compress; an editable install has no copy, and the service compresses at its start."""
        super().run()
        if self.editable_mode:
            return
        for path in sorted((Path(self.build_lib) / CONSOLE).rglob("*")):
            if path.suffix in WORTH_IT:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))


setup(cmdclass={"build_py": BuildPy})
