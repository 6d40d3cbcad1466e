"""Stores at URLs: whole versions or none, kept by digest, and as much said of what is wrong as in a folder."""

import errno
import fcntl
import os
import time
import uuid

import fsspec
import pytest

from service.errors import DamagedModelError, DataError, ModelConflictError, ModelNotFoundError, UnavailableError
from service.scoring.version import Draft, Reference
from service.store import storage
from service.store.loading import load_scorer
from service.store.storage import LocalStorage, RemoteStorage
from service.store.store import FILES, Store
from service.system import files
from tests.models import digits


@pytest.fixture
def url():
    """A place in memory, as fsspec has it."""
    return f"memory://{uuid.uuid4().hex}/models"


@pytest.fixture
def remote(url, digit_scorer, tmp_path):
    """A store there, with one version of one model."""
    store = Store(url, tmp_path / "cache")
    store.publish("digits", Draft(digit_scorer.model, digit_scorer.calibration, {}, {}))
    return store


def publish(store, scorer):
    return store.publish("digits", Draft(scorer.model, scorer.calibration, {}, {}))


def test_a_model_published_to_a_url_scores_as_before(remote, url, digit_scorer):
    again = load_scorer(Store(url), "digits", "cpu")
    assert (again.score(digits()[:5]).log_likelihood == digit_scorer.score(digits()[:5]).log_likelihood).all()
    assert again.published.digest == remote.load(Reference("digits", "1")).digest


def test_versions_count_up_and_aliases_move(remote, digit_scorer):
    assert publish(remote, digit_scorer) == Reference("digits", "2")
    assert remote.resolve("digits") == Reference("digits", "2")
    remote.set_alias("digits", "production", "1")
    remote.set_default("digits")
    assert remote.resolve() == Reference("digits", "1")
    with pytest.raises(ModelConflictError):
        remote.set_alias("digits", "production", "2", expected="2")
    with pytest.raises(ModelNotFoundError):
        remote.resolve("digits@7")


def test_files_are_fetched_once_and_a_damaged_copy_is_fetched_again(remote, tmp_path, monkeypatch):
    remote.load(Reference("digits", "1"))
    cache = tmp_path / "cache"
    assert len(list(cache.iterdir())) == len(FILES)
    fetched = []
    plain = RemoteStorage.read
    monkeypatch.setattr(
        RemoteStorage, "read", lambda self, path, most: (fetched.append(path), plain(self, path, most))[1]
    )
    remote.load(Reference("digits", "1"))
    assert fetched == ["digits/1/manifest.json"]
    victim = next(cache.iterdir())
    victim.write_bytes(b"nonsense")
    remote.load(Reference("digits", "1"))
    assert len(fetched) == 3
    assert victim.read_bytes() != b"nonsense"


def test_a_cache_that_cannot_be_written_is_none(url, digit_scorer, tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(url, tmp_path / "file" / "cache")
    publish(store, digit_scorer)
    assert store.load(Reference("digits", "1")).card.name == "digits"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name(remote, url, name):
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/digits/1/{name}", files.cat_file(f"{root}/digits/1/{name}")[:-3])
    with pytest.raises(DamagedModelError, match=name):
        remote.load(Reference("digits", "1"))


def test_a_version_without_its_manifest_is_none_and_its_number_stays_taken(remote, url, digit_scorer):
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/digits/2/card.json", b"{}")
    assert remote.versions("digits") == ["1"]
    assert publish(remote, digit_scorer) == Reference("digits", "3")


def test_of_two_who_publish_the_same_version_one_is_refused(remote):
    with pytest.raises(ModelConflictError, match="it was published meanwhile"):
        remote.storage.publish("digits", {}, b"{}", "1")


def test_what_a_driver_raises_is_an_unavailable_store(remote, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(type(remote.storage.files), "glob", broken)
    with pytest.raises(UnavailableError, match="cannot be read"):
        remote.catalog()


def test_a_url_that_nothing_reaches_is_refused_in_words():
    with pytest.raises(DataError, match="cannot be used"):
        Store("nothing://bucket/models")


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path, digit_scorer):
    store = Store(tmp_path)
    publish(store, digit_scorer)
    old, young = tmp_path / "digits" / ".2-old", tmp_path / "digits" / ".2-young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    publish(store, digit_scorer)
    assert not old.exists()
    assert young.exists()
    assert isinstance(store.storage, LocalStorage)
    assert store.versions("digits") == ["1", "2"]


def test_a_full_disk_leaves_the_old_aliases_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "mnist" / "1").mkdir(parents=True)
    (tmp_path / "mnist" / "1" / "manifest.json").write_text("{}")
    store = Store(tmp_path)
    store.set_alias("mnist", "old", "1")
    before = (tmp_path / "aliases.json").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UnavailableError, match="cannot be written"):
        store.set_alias("mnist", "new", "1")
    assert (tmp_path / "aliases.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "aliases.json", "mnist"]


def test_a_lock_that_another_writer_holds_is_not_waited_for_without_end(tmp_path, monkeypatch):
    (tmp_path / "mnist" / "1").mkdir(parents=True)
    (tmp_path / "mnist" / "1" / "manifest.json").write_text("{}")
    monkeypatch.setattr(storage, "LOCK_S", 0.2)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="another writer has the store locked"):
            Store(tmp_path).set_alias("mnist", "new", "1")
