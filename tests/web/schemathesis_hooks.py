"""Bodies of the types that Schemathesis cannot make by itself; `schemathesis.toml` names this file."""

import io
import json

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image

from service.files.images import MEDIA_TYPES

IMAGES = np.random.default_rng(7).integers(0, 256, (2, 8, 8), dtype=np.uint8)
TENSOR = {"name": "rows", "shape": [2, 64], "datatype": "FP32", "parameters": {"binary_data_size": 512}}


def mangled(good):
    """Bytes that are what they should be, cut short, or changed somewhere, or anything."""
    places = st.integers(0, len(good) - 1)
    cut = places.map(lambda place: good[:place])
    changed = st.tuples(places, st.binary(min_size=1, max_size=4)).map(
        lambda change: good[: change[0]] + change[1] + good[change[0] + 1 :]
    )
    return st.one_of(st.just(good), cut, changed, st.binary(max_size=300))


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


GOOD = {
    "application/x-npy": written(lambda file: np.save(file, IMAGES)),
    "application/x-ndjson": b"".join(json.dumps(one.ravel().tolist()).encode() + b"\n" for one in IMAGES),
    "text/csv": b"ash,hue\n1,2\n",
    "application/octet-stream": json.dumps({"inputs": [TENSOR]}).encode() + bytes(512),
    **{
        kind: written(lambda file, name=name: Image.fromarray(IMAGES[0]).save(file, format=name))
        for kind, name in MEDIA_TYPES.items()
    },
}
for kind, good in GOOD.items():
    schemathesis.openapi.media_type(kind, mangled(good))
