"""The programs of examples/http ask a service of the bundled models, each in its language, where that is there."""

import shutil
import subprocess

import pytest

from tests.tools import REPOSITORY, running_service

COMMANDS = {"score.sh": ["sh"], "score.py": ["python3"], "score.mjs": ["node"], "score.go": ["go", "run"]}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(REPOSITORY / "model_store" / "mnist", folder / "store" / "mnist")
    with running_service(folder / "store", folder / "log") as client:
        yield str(client.base_url).rstrip("/")


def test_there_is_one_for_each_language():
    assert {path.name for path in (REPOSITORY / "examples" / "http").iterdir()} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_runs(address, name):
    command = COMMANDS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    program = REPOSITORY / "examples" / "http" / name
    done = subprocess.run(
        [*command, program, address], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout
    assert "content-type: application/json" in done.stdout  # the error's hint
