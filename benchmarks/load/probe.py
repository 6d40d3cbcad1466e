"""A prober of /livez: asks every ten milliseconds until a line comes on standard input, and prints what it saw.

python -m load.probe 8000
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from typing import Any

import numpy as np

EVERY_S = 0.01


def main() -> None:
    """Probe a port."""
    over = threading.Event()

    def wait_for_a_line() -> None:
        sys.stdin.readline()
        over.set()

    threading.Thread(target=wait_for_a_line, daemon=True).start()
    probe = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=120)
    times: list[float] = []
    print("begun", flush=True)
    while not over.is_set() or not times:
        start = time.perf_counter()
        probe.request("GET", "/livez", headers={"Host": "localhost"})
        probe.getresponse().read()
        times.append(time.perf_counter() - start)
        time.sleep(EVERY_S)
    print(json.dumps({"count": len(times), "p99_s": float(np.quantile(times, 0.99)), "longest_s": max(times)}))


def quantiles_of(output: bytes) -> dict[str, Any]:
    """What a prober printed."""
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen


if __name__ == "__main__":
    main()
