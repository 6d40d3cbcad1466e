"""What a process serves follows its store, and never serves less than it can."""

import logging
import shutil
import threading

import pytest

from service.errors import DamagedModelError, ModelNotFoundError, UnavailableError
from service.scoring.version import Draft, Reference
from service.serving import registry as registry_module
from service.serving.registry import STORE, Registry
from service.store.store import Store
from tests.models import digits


@pytest.fixture
def store(trained_models, tmp_path):
    """A store of one model with one version, to write to."""
    return trained_models.store(tmp_path / "store", "grey")


@pytest.fixture
def draft(store):
    published = store.load(Reference("grey", "1"))
    return Draft(published.model, published.calibration, {}, {})


def registry_of(store, max_loaded=8, **options):
    return Registry(Store(store.root), "cpu", max_loaded, **options)


def followed(store, **options):
    """A registry that has looked at the store once."""
    registry = registry_of(store, **options)
    registry.refresh()
    return registry


def damage(store, version, name="grey"):
    """Cut a version's weights short; gives what mends it."""
    path = store.root / name / version / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    return lambda: path.write_bytes(whole)


def version(registry, name=None):
    return registry.get(name).published.reference.version


# Names


def test_before_the_store_was_looked_at_nothing_is_there_yet(store):
    registry = registry_of(store)
    assert registry.phase() == "loading"
    assert not registry.default_is_ready()
    assert registry.status() == {}
    for ask in (registry.resolve, registry.in_memory, registry.get):
        with pytest.raises(UnavailableError, match="models are loading") as caught:
            ask(None)
        assert caught.value.retry_after_s == 2.0


def test_a_name_means_the_newest_version_or_its_alias(store, draft):
    store.publish("grey", draft)
    store.set_alias("grey", "old", "1")
    registry = followed(store)
    assert registry.default_is_ready()
    assert registry.status() == {"grey": "ready"}
    assert [version(registry, name) for name in (None, "grey", "grey@2", "grey@1", "grey@old")] == list("22211")
    assert registry.in_memory("grey") is registry.get(None)
    assert registry.known("grey") == "grey"


@pytest.mark.parametrize(
    "name", ["nobody", "grey@nowhere", "grey@3", "grey@0", "", "@", "@1", "../grey", "grey@1@1", "\0", "GREY"]
)
def test_a_name_that_is_none_is_refused(store, name):
    registry = followed(store)
    with pytest.raises(ModelNotFoundError):
        registry.get(name)
    assert list(registry.scorers) == [Reference("grey", "1")]
    with pytest.raises(ModelNotFoundError):
        registry.known(name)


def test_of_several_models_without_a_default_one_must_be_named(store, draft, tmp_path):
    Store(tmp_path / "two").publish("a", draft)
    Store(tmp_path / "two").publish("b", draft)
    registry = followed(Store(tmp_path / "two"))
    assert registry.status() == {"a": "ready", "b": "ready"}
    assert not registry.default_is_ready()
    with pytest.raises(ModelNotFoundError, match="name one"):
        registry.get(None)
    Store(tmp_path / "two").set_default("b")
    registry.refresh()
    assert registry.get(None).published.reference.name == "b"


# New versions and aliases


def test_a_new_version_takes_over_when_the_store_is_looked_at(store, draft):
    registry = followed(store)
    before = registry.get(None)
    store.publish("grey", draft)
    assert version(registry) == "1"
    registry.refresh()
    assert version(registry) == "2"
    assert registry.get("grey@1") is before
    store.set_alias("grey", "production", "1")
    registry.refresh()
    assert registry.get(None) is before


def test_a_look_at_a_store_that_did_not_change_changes_nothing(store):
    registry = followed(store)
    catalog, scorer = registry.catalog, registry.get(None)
    registry.refresh()
    assert registry.catalog is catalog
    assert registry.get(None) is scorer


def test_a_new_version_that_is_damaged_leaves_the_old_one_until_it_is_mended(store, draft, monkeypatch, caplog):
    registry = followed(store)
    store.publish("grey", draft)
    mend = damage(store, "2")
    for _ in range(3):
        registry.refresh()
        assert version(registry) == "1"
        assert registry.default_is_ready()
        assert registry.status() == {"grey": "ready"}
        assert "weights.safetensors" in registry.held_back["grey@2"]
    assert caplog.text.count("cannot be served") == 1  # said once
    with pytest.raises(DamagedModelError, match=r"weights\.safetensors"):
        registry.get("grey@2")
    mend()
    monkeypatch.setattr(registry_module, "RETRY_S", 0.0)
    registry.refresh()
    assert version(registry) == "2"
    assert registry.held_back == {}


def test_an_alias_of_a_damaged_version_stays_where_it_was(store, draft):
    store.set_alias("grey", "tested", "1")
    registry = followed(store)
    store.publish("grey", draft)
    damage(store, "2")
    store.set_alias("grey", "tested", "2")
    registry.refresh()
    assert version(registry, "grey@tested") == "1"
    store.set_alias("grey", "never", "2")  # which meant nothing before
    registry.refresh()
    with pytest.raises(DamagedModelError):
        registry.get("grey@never")


def test_a_default_that_is_damaged_leaves_the_old_one(store, draft):
    registry = followed(store)
    store.publish("other", draft)
    mend = damage(store, "1", "other")
    store.set_default("other")
    registry.refresh()
    assert registry.get(None).published.reference.name == "grey"
    assert registry.default_is_ready()
    assert "weights" in registry.status()["other"]
    mend()


def test_a_store_whose_only_version_is_damaged_says_why(store):
    damage(store, "1")
    failures = []
    registry = followed(store, on_failure=lambda: failures.append(1))
    assert registry.phase() == "unavailable"
    assert not registry.default_is_ready()
    assert "weights.safetensors" in registry.status()["grey"]
    with pytest.raises(DamagedModelError):
        registry.get(None)
    assert failures == [1]


def test_a_version_that_failed_is_not_read_again_for_a_while(store, monkeypatch):
    mend = damage(store, "1")
    failures = []
    registry = followed(store, on_failure=lambda: failures.append(1))
    mend()
    for _ in range(3):
        with pytest.raises(DamagedModelError):
            registry.get("grey@1")
    assert len(failures) == 1
    monkeypatch.setattr(registry_module, "RETRY_S", 0.0)
    assert version(registry, "grey@1") == "1"
    assert registry.failures == {}


# A store that goes away


@pytest.mark.parametrize("loss", ["folder", "aliases"])
def test_a_store_that_cannot_be_read_leaves_what_is_served(store, draft, loss, caplog):
    registry = followed(store)
    if loss == "folder":
        hidden = store.root.rename(store.root.with_name("hidden"))
    else:
        (store.root / "aliases.json").write_text("{")
    with caplog.at_level(logging.ERROR, "vouch"):
        registry.refresh()
        registry.refresh()
    assert set(registry.held_back) == {STORE}
    assert caplog.text.count("cannot be served") == 1
    assert version(registry) == "1"
    assert registry.default_is_ready()
    assert len(registry.get(None).score(digits()[:1])) == 1
    if loss == "folder":
        hidden.rename(store.root)
    else:
        (store.root / "aliases.json").unlink()
    registry.refresh()
    assert registry.held_back == {}
    assert version(registry) == "1"


def test_a_store_that_was_never_readable_is_said_to_callers(tmp_path):
    registry = followed(Store(tmp_path / "nowhere"))
    assert registry.phase() == "unavailable"
    with pytest.raises(UnavailableError) as caught:
        registry.get(None)
    assert str(caught.value) == registry.held_back[STORE]


def test_a_served_version_whose_files_are_gone_is_served_from_memory(store, draft):
    store.publish("grey", draft)
    registry = followed(store)
    shutil.rmtree(store.root / "grey" / "2")
    assert version(registry) == "2"
    registry.refresh()
    assert version(registry) == "1"
    with pytest.raises(ModelNotFoundError):
        registry.resolve("grey@nowhere")


def test_a_model_that_is_taken_out_of_the_store_is_no_longer_served(store, draft):
    store.publish("other", draft)
    registry = followed(store)
    shutil.rmtree(store.root / "other")
    registry.refresh()
    assert registry.status() == {"grey": "ready"}
    with pytest.raises(ModelNotFoundError):
        registry.get("other")


# Memory


@pytest.mark.parametrize("max_loaded", [1, 2, 3])
def test_so_many_versions_that_are_not_served_are_kept_and_the_latest_of_them(store, draft, max_loaded):
    for _ in range(5):
        store.publish("grey", draft)
    store.set_alias("grey", "tested", "5")
    registry = followed(store, max_loaded=max_loaded)
    for asked in ("1", "2", "3", "4", "2"):
        assert version(registry, f"grey@{asked}") == asked
    others = [reference.version for reference in registry.scorers if reference.version not in ("5", "6")]
    expected = {1: ["2"], 2: ["4", "2"], 3: ["2", "3", "4"]}[max_loaded]
    assert others == expected
    assert {Reference("grey", "5"), Reference("grey", "6")} < set(registry.scorers)


def test_callers_who_ask_for_a_version_at_once_share_one(store, draft):
    store.publish("grey", draft)
    registry = followed(store)
    found = []
    threads = [threading.Thread(target=lambda: found.append(registry.get("grey@1"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(map(id, found))) == 1


def test_a_version_that_nobody_asked_for_is_not_loaded(store, draft):
    store.publish("grey", draft)
    registry = followed(store)
    assert registry.state(Reference("grey", "1")) == "not loaded yet"
    assert registry.state(Reference("grey", "2")) == "ready"
    assert registry.in_memory("grey@1") is None
