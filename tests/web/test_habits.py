"""Thirty habits of asking: each is answered as the table in docs/http.md says."""

import shutil

import pytest

from tests.models import digits
from tests.tools import REPOSITORY, running_service
from tests.web.habits import HABITS, ORIGIN, make_files, shell, table


@pytest.fixture(scope="module")
def service(tiny_store, tmp_path_factory):
    """The address of a service that some web pages may ask, and a folder with files to send."""
    folder = tmp_path_factory.mktemp("habits")
    make_files(folder, digits()[:3])
    with running_service(tiny_store, folder / "log", cors_origins=f'["{ORIGIN}"]') as client:
        yield str(client.base_url).rstrip("/"), folder


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: f"{habit.who}: {habit.sends}"[:70])
def test_a_habit_is_answered(service, habit):
    if habit.who == "fetch" and shutil.which("node") is None:
        pytest.skip("there is no node here")
    address, folder = service
    reply = shell(habit.sends, address, folder) if habit.ask is None else habit.ask(address, folder)
    assert reply.status == habit.status, reply
    assert habit.check(reply), reply


def test_the_table_in_the_docs_is_of_these_habits():
    assert len(HABITS) >= 30
    assert "\n".join(table()) in (REPOSITORY / "docs" / "http.md").read_text()
