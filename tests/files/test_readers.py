"""Data files: what is read, and the one clear line for what is not."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.errors import DataError
from service.files.readers import Rows, read


def idx(array, kind=8):
    return struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


def test_every_kind_of_file_gives_the_same_numbers(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "a.npz", x_train=IMAGES, y_train=np.arange(3))
    np.savez_compressed(tmp_path / "one.npz", anything=IMAGES)
    (tmp_path / "a-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "a-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "folder" / f"{number}.png")
    for name in ("a.npy", "a.npz", "one.npz", "a-idx3-ubyte", "a-idx3-ubyte.gz", "folder"):
        np.testing.assert_array_equal(read(tmp_path / name).array, IMAGES)


@pytest.mark.parametrize("text", ["a,b\n1,2\n3.5,-4e1\n", "\ufeffa;b\r\n1;2\r\n3.5;-40\r\n", "a\tb\n1\t2\n\n3.5\t-40"])
def test_csv_with_commas_semicolons_tabs_and_a_byte_order_mark(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    rows = read(tmp_path / "t.csv")
    assert rows.columns == ("a", "b")
    np.testing.assert_array_equal(rows.array, [[1, 2], [3.5, -40]])
    assert read(tmp_path / "t.csv", columns=["b"]).array.tolist() == [[2], [-40]]


def test_parquet(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": [0.5, 1.5], "c": ["x", "y"]}), tmp_path / "t.parquet")
    rows = read(tmp_path / "t.parquet", columns=["b", "a"])
    assert rows.columns == ("b", "a")
    assert rows.array.tolist() == [[0.5, 1], [1.5, 2]]


def bad_files(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(npz, first=IMAGES, second=IMAGES)
    nan = io.BytesIO()
    np.save(nan, np.array([[1.0, 2.0], [3.0, np.nan]]))
    huge = io.BytesIO()
    np.save(huge, np.array([[1.0, 1e39]]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"no array")
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1.0, None], "c": ["x", "y"]}), table)
    empty = tmp_path / "nothing"
    empty.mkdir()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    Image.new("L", (4, 4)).save(mixed / "1.png")
    Image.new("L", (5, 4)).save(mixed / "2.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return [
        (tmp_path / "absent.csv", None, None, "no such file"),
        (write("t.doc", "hello"), None, None, "unsupported format"),
        (write("pickled.npy", npy.getvalue()), None, None, "allow_pickle"),
        (write("short.npy", npy.getvalue()[:20]), None, None, "cannot be read"),
        (write("two.npz", npz.getvalue()), None, None, "--key: first, second"),
        (write("two.npz", npz.getvalue()), "third", None, "--key: first, second"),
        (write("bad.npz", b"PK nonsense"), None, None, "cannot be read"),
        (write("inner.npz", buffer.getvalue()), None, None, "cannot be read|no array|expected numbers"),
        (write("nan.npy", nan.getvalue()), None, None, "row 1, column 1: missing, infinite"),
        (write("big.npy", huge.getvalue()), None, None, "row 0, column 1: .*too large for float32"),
        (write("a.csv", ""), None, None, "is empty"),
        (write("h.csv", "a,b\n"), None, None, "a header but no rows"),
        (write("n.csv", "1,2\n3,4\n"), None, None, "line 1 reads like the other lines"),
        (write("r.csv", "a,b\n1,2\n3\n"), None, None, "line 3 has 1 cells, the header has 2"),
        (write("s.csv", "a,b\n1,x\n"), None, None, "line 2, column 'b': text, expected a number"),
        (write("m.csv", "a,b\n1,\n"), None, None, "line 2, column 'b': missing, expected a number"),
        (write("i.csv", "a,b\n1,inf\n"), None, None, "line 2, column 'b': text, expected a number"),
        (write("d.csv", "a,a\n1,2\n"), None, None, "columns 1 and 2 have the same name"),
        (write("c.csv", "a,b\n1,2\n"), None, ["z"], "has no column 'z'"),
        (write("b.csv", b"a,b\n1,\xff\xfe\n"), None, None, "line 2, column 'b': text"),
        (write("q.csv", 'a,b\n1,"2\n'), None, None, "line 2: a quote is opened and never closed"),
        (write("x-idx3-ubyte", b"\0\0\x08"), None, None, "cannot be read"),
        (write("y-idx3-ubyte", idx(IMAGES)[:-1]), None, None, "it holds fewer"),
        (write("z-idx3-ubyte", idx(IMAGES) + b"!"), None, None, "it holds more"),
        (write("w-idx3-ubyte", struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 2**31)), None, None, "claims to hold"),
        (write("g-idx1-ubyte.gz", b"no gzip"), None, None, "cannot be read"),
        (write("p.parquet", b"PAR1 no"), None, None, "cannot be read"),
        (table, None, ["a"], "row 1, column 'a': missing"),
        (table, None, ["c"], "row 0, column 'c': text"),
        (table, None, ["z"], "has no column 'z'"),
        (empty, None, None, "holds no images"),
        (
            mixed,
            None,
            None,
            "images of 2 sizes; choose one by --size.*: 4 x 4: 1 images, such as 1.png; 5 x 4: 1 images",
        ),
        (
            broken,
            None,
            None,
            "none of 1 images can be read: 1.png: the image is damaged|none of 1 images can be read: 1.png: unknown",
        ),
        (write("k.csv", "a,b\n1,2\n"), "x", None, "--key works only with .npz files"),
    ]


def test_a_file_that_cannot_be_read_is_one_line_that_names_it(tmp_path):
    for path, key, columns, message in bad_files(tmp_path):
        with pytest.raises(DataError, match=message) as raised:
            read(path, key, columns)
        assert str(path.name) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_the_digest_tells_other_numbers_types_and_columns_apart():
    rows = [
        Rows(np.ones((2, 2))),
        Rows(np.ones((2, 2), dtype=np.float32)),
        Rows(np.ones((4, 1))),
        Rows(np.zeros((2, 2))),
    ]
    assert len({data.digest() for data in [*rows, Rows(np.ones((2, 2)), ("a", "b"))]}) == 5
