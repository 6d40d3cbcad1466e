"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_quota() -> int:
    """Whole CPUs that this process may use: the cgroup's quota (v2 or v1), or its affinity."""
    affinity = len(os.sched_getaffinity(0))
    quota = quota_v2(CGROUP / "cpu.max") or quota_v1(CGROUP / "cpu")
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def quota_v2(path: Path) -> float | None:
    """CPU limit in `cpu.max`: quota and period, or `max` for no limit (None)."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def quota_v1(folder: Path) -> float | None:
    """CPU limit in `cpu.cfs_quota_us`, which is -1 for no limit (None)."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None
