"""The drift monitor: over a socket, over a restart, and with whatever state it finds."""

import io
import logging
import os
import tracemalloc

import numpy as np
import pytest

from service.scoring.drift_monitor import DriftMonitor
from service.scoring.scores import rows_of
from service.serving import drift
from service.serving.drift import DriftMonitors
from service.web import schemas
from tests.models import digits
from tests.tools import running_service

NPY = {"content-type": "application/x-npy"}


def post(client, rows, **headers):
    buffer = io.BytesIO()
    np.save(buffer, rows)
    assert client.post("/score", content=buffer.getvalue(), headers=NPY | headers).status_code == 200


def drift_of(client):
    answer = client.get("/drift?model=digits")
    return schemas.DriftsAnswer.model_validate_json(answer.content).drift[0]


@pytest.mark.slow
def test_noise_is_noticed_kept_over_a_restart_and_begun_anew_by_hand(tiny_store, tmp_path):
    settings = {"drift_folder": str(tmp_path / "state"), "log_level": "INFO"}
    with running_service(tiny_store, tmp_path / "log", **settings) as client:
        assert not drift_of(client).drifts
        post(client, digits()[:60])
        assert not drift_of(client).drifts
        noise = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
        post(client, noise, **{"x-request-id": "one"})
        spoken = drift_of(client)
        assert spoken.drifts
        assert spoken.direction == "low"
        assert 60 < spoken.alarm_row <= 120
        assert spoken.watched_rows == spoken.rows == 120
        assert spoken.log_capital > spoken.limit
        post(client, noise, **{"x-request-id": "one"})  # a retry
        assert drift_of(client).rows == 120
        post(client, noise, **{"x-request-id": "two"})
        assert drift_of(client).rows == 180
        text = client.get("/metrics").text
        assert 'vouch_drifts{model="digits@1"} 1.0' in text
    assert (tmp_path / "log").read_text().count('"message": "drift"') == 1
    with running_service(tiny_store, tmp_path / "log", **settings) as client:
        again = drift_of(client)
        assert (again.drifts, again.rows, again.alarm_row) == (True, 180, spoken.alarm_row)
        anew = client.post("/models/digits/drift", json={"restart": True}).json()["drift"][0]
        assert (anew["drifts"], anew["restarts"], anew["rows"], anew["log_capital"]) == (
            False,
            1,
            180,
            pytest.approx(0),
        )
        assert anew["limit"] > spoken.limit
        for body in ({}, {"restart": False}, {"restart": True, "more": 1}):
            assert client.post("/models/digits/drift", json=body).status_code == 422
        assert client.post("/models/digits/drift", content="{}").status_code == 415
        assert drift_of(client).restarts == 1


def restored(scorer, folder):
    """Monitors that continue what was saved."""
    monitors = DriftMonitors(0.01, folder)
    monitors.restore(scorer)
    return monitors


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def wrong_states(scorer):
    """Archives that are whole and hold no monitor."""
    good = DriftMonitor.of(scorer).arrays()
    yield npz()
    yield npz(**{name: array for name, array in good.items() if name != "sides"})
    for name, array in (
        ("sides", np.zeros(2, int)), ("sides", np.array([1, -1, 0])), ("sides", np.zeros(3)),
        ("p_values", np.zeros((10, 1), int)),
        ("counts", np.zeros(5, int)), ("counts", -good["counts"]), ("log_parts", np.full(5, np.nan)),
        ("log_parts", np.full(5, np.inf)), ("log_parts", np.zeros(4)), ("grid", np.array([np.nan, 1.0])),
        ("grid", np.array([0.0, 0.0])), ("grid", np.zeros(3)), ("numbers", np.array([-1, 0, 0])),
        ("numbers", np.zeros(2, int)),
        ("peak", np.array(np.inf)), ("peak", np.array("x")),
    ):  # fmt: skip
        yield npz(**good | {name: array})
    yield npz(**good, more=np.zeros(2**27, dtype=np.uint8))  # 128 MiB from 128 KiB


def test_a_state_that_cannot_be_read_is_put_aside(digit_scorer, tmp_path):
    path = tmp_path / "digits@1.npz"
    contents = [b"", b"no zip", b"PK\x03\x04" + bytes(100), *wrong_states(digit_scorer)]
    tracemalloc.start()
    for content in contents:
        path.write_bytes(content)
        monitors = restored(digit_scorer, tmp_path)
        assert (tmp_path / "digits@1.damaged").read_bytes() == content
        monitors.add(digit_scorer, digit_scorer.score(digits()[:2]), key="a")
        assert monitors.document(digit_scorer)["rows"] == 2
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    monitors.save()
    assert restored(digit_scorer, tmp_path).document(digit_scorer)["rows"] == 2


def test_a_state_that_is_no_file_is_passed_over(digit_scorer, tmp_path):
    os.mkfifo(tmp_path / "digits@1.npz")
    assert restored(digit_scorer, tmp_path).document(digit_scorer)["rows"] == 0


def test_the_state_of_another_version_is_not_taken_for_this_one_s(digit_scorer, tmp_path):
    monitors = DriftMonitors(0.01, tmp_path)
    monitors.add(digit_scorer, digit_scorer.score(digits()[:5]))
    monitors.versions[digit_scorer.published.reference].everything.digest = "sha256:another"
    monitors.save()
    assert restored(digit_scorer, tmp_path).document(digit_scorer)["rows"] == 0


def test_each_key_is_watched_by_itself_and_found_again(digit_scorer, tmp_path):
    monitors, noise = DriftMonitors(0.01, tmp_path), np.random.default_rng(0).integers(0, 256, (200, 8, 8))
    good = digit_scorer.score(digits()[:100])
    bad = digit_scorer.score(noise)
    for start in range(0, 100, 10):  # ten valid rows to each bad one hide it from the monitor of all
        monitors.add(digit_scorer, good, None, "honest")
        monitors.add(digit_scorer, rows_of(bad, slice(start, start + 10)), None, "hostile")
    for one in (monitors, restored_after_save(monitors, digit_scorer, tmp_path)):
        keys = {entry["key"]: entry for entry in one.document(digit_scorer, None)["keys"]}
        assert {key: entry["drifts"] for key, entry in keys.items()} == {"honest": False, "hostile": True}
        assert keys["honest"]["level"] == pytest.approx(0.01 / 2)
        assert keys["hostile"]["level"] == pytest.approx(0.01 / 6)
        assert keys["hostile"]["rows"] == 100
        assert [entry["key"] for entry in one.document(digit_scorer, ["honest"])["keys"]] == ["honest"]
        assert one.document(digit_scorer)["keys"] == []
        assert one.alarms()[digit_scorer.published.reference][2] == 1


def restored_after_save(monitors, scorer, folder):
    monitors.save()
    return restored(scorer, folder)


def test_keys_are_bounded_and_a_forgotten_one_gets_nothing_back(digit_scorer, monkeypatch):
    monkeypatch.setattr(drift, "MAX_KEYS", 2)
    monitors, scores = DriftMonitors(0.01), digit_scorer.score(digits()[:2])
    for key in ("a", "b", "c", "a"):
        monitors.add(digit_scorer, scores, None, key)
    levels = {entry["key"]: entry["level"] for entry in monitors.document(digit_scorer, None)["keys"]}
    assert levels == {"c": pytest.approx(0.01 / 12), "a": pytest.approx(0.01 / 20)}


def test_an_alarm_is_logged_as_a_warning_with_its_own_level(digit_scorer, caplog):
    monitors, noise = DriftMonitors(0.01), np.random.default_rng(0).integers(0, 256, (60, 8, 8))
    with caplog.at_level(logging.WARNING, "vouch"):
        monitors.add(digit_scorer, digit_scorer.score(noise), None, "shop")
    record = next(one for one in caplog.records if getattr(one, "key", None) == "shop")
    assert record.levelname == "WARNING"
    assert record.drift_level == pytest.approx(0.005)
    assert not hasattr(record, "level")


def test_a_folder_that_cannot_be_written_ends_no_request(digit_scorer, tmp_path):
    (tmp_path / "file").write_text("")
    monitor = DriftMonitors(0.01, tmp_path / "file" / "folder")
    monitor.add(digit_scorer, digit_scorer.score(digits()[:5]))
    monitor.save()
    assert monitor.document(digit_scorer)["rows"] == 5


def test_a_watch_comes_back_as_it_was(digit_scorer):
    monitor = DriftMonitor.of(digit_scorer)
    monitor.add(digit_scorer, digit_scorer.score(digits()[:50]), np.random.default_rng(0).random(50), 0.01)
    back = DriftMonitor.of_arrays(monitor.arrays())
    assert back.martingale.log_capital == monitor.martingale.log_capital
    scores = digit_scorer.score(digits()[50:80])
    uniforms = np.random.default_rng(1).random(30)
    for one in (monitor, back):
        one.add(digit_scorer, scores, uniforms, 0.01)
    assert back.martingale.log_capital == monitor.martingale.log_capital
    assert (back.ranks.counts == monitor.ranks.counts).all()
