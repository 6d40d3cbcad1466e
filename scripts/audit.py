"""Known vulnerabilities of the versions in constraints.txt, by pip-audit.

Where its database of advisories cannot be reached, that is said, and nothing is claimed.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> None:
    """Run it: exit status 1 where a version has a known vulnerability, 0 where none has or nothing could be asked."""
    command = ["-r", "constraints.txt", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *command], capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        print(f"audit: SKIPPED: the database of advisories cannot be reached from here ({last[0][:200]})")
        return
    asked = [one for one in dependencies if "skip_reason" not in one]
    if not asked:
        print(
            f"audit: SKIPPED: of {len(dependencies)} versions the database of advisories knows none: it cannot be reached"
        )
        return
    weak = [one for one in asked if one["vulns"]]
    for one in weak:
        print(f"{one['name']} {one['version']}: " + ", ".join(found["id"] for found in one["vulns"]))
    print(f"audit: {len(asked)} of {len(dependencies)} versions asked about, {len(weak)} with known vulnerabilities")
    sys.exit(bool(weak))


if __name__ == "__main__":
    main()
