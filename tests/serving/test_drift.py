"""The drift monitor: over a socket, over a restart, and with whatever state it finds."""

import io

import numpy as np
import pytest

from service.scoring.drift_monitor import DriftMonitor
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


def test_a_state_that_cannot_be_read_is_put_aside(digit_scorer, tmp_path):
    path = tmp_path / "digits@1.npz"
    for content in (b"", b"no zip", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        monitor = DriftMonitors(0.01, tmp_path)
        assert monitor.document(digit_scorer)["rows"] == 0
        assert (tmp_path / "digits@1.damaged").read_bytes() == content
    monitor.add(digit_scorer, digit_scorer.score(digits()[:5]))
    monitor.save()
    assert DriftMonitors(0.01, tmp_path).document(digit_scorer)["rows"] == 5


def test_the_state_of_another_version_is_not_taken_for_this_one_s(digit_scorer, tmp_path):
    monitors = DriftMonitors(0.01, tmp_path)
    monitors.add(digit_scorer, digit_scorer.score(digits()[:5]))
    monitors.monitors[digit_scorer.published.reference].digest = "sha256:another"
    monitors.save()
    assert DriftMonitors(0.01, tmp_path).document(digit_scorer)["rows"] == 0


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
