"""Settings: read from the environment, and CPUs from the container's quota."""

import os

import pytest

from service.settings import Settings, SettingsError, read_settings
from service.system.cpus import cpu_quota, quota_v1, quota_v2


def test_they_come_from_the_environment_and_are_frozen(monkeypatch):
    monkeypatch.setenv("VOUCH_PORT", "9001")
    monkeypatch.setenv("VOUCH_OPEN_PATHS", '["/metrics"]')
    settings = read_settings()
    assert settings.port == 9001
    assert settings.open_paths == ("/metrics",)
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_a_wrong_one_is_named_without_its_value(monkeypatch):
    monkeypatch.setenv("VOUCH_MAX_ROWS", "s3cr3t")
    with pytest.raises(SettingsError, match="VOUCH_MAX_ROWS: ") as raised:
        read_settings()
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("150000 100000", 1.5), ("", None), ("x y", None)]
)
def test_the_quota_of_cgroup_v2(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    assert quota_v2(tmp_path / "cpu.max") == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("200000", 2.0)])
def test_the_quota_of_cgroup_v1(tmp_path, quota, expected):
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert quota_v1(tmp_path) == expected
    assert quota_v1(tmp_path / "nowhere") is None


def test_threads_are_those_set_or_those_the_machine_gives():
    assert Settings(threads=3).thread_count() == 3
    assert 1 <= cpu_quota() <= len(os.sched_getaffinity(0))
