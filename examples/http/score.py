"""Ask a service, with nothing but Python: python examples/http/score.py [ADDRESS], from the folder of the checkout.

`service.client` does more: arrays, data frames, deadlines, retries.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

address = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"


def ask(path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
    """What the service answers; its problem document is the error's text."""
    request = urllib.request.Request(address + path, body, {"content-type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        problem = json.load(error)
        raise ValueError(f"{problem['status']}: {problem['detail']}") from None


# A verdict on each row; rows are JSON, an array of numpy, a table, or images.
rows = Path("examples/rows.json").read_bytes()
for score in json.loads(ask("/score?false_alarm=0.01", rows))["scores"]:
    print(score["verdict"], round(score["log_likelihood"], 1), score.get("reason", ""))
image = Path("examples/valid/digit-3.png").read_bytes()
print(json.loads(ask("/score?false_alarm=0.01", image, "image/png"))["scores"][0]["verdict"])

# What the model makes of a row, and rows that it draws.
rebuilt = json.loads(ask("/reconstruct?draws=2", image, "image/png"))["reconstructions"][0]
print(len(rebuilt["mean"]), "lines of pixels,", len(rebuilt["draws"]), "draws")
drawn = json.loads(ask("/sample?num=4&seed=7"))
print(len(drawn["samples"]), "samples of seed", drawn["seed"])

# An error says what to send instead.
try:
    ask("/score", rows, "text/plain")
except ValueError as error:
    print(error)
