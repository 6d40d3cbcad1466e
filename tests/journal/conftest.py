"""Journals to write to, and to tamper with."""

import numpy as np
import pytest

from service.journal.chain import JournalKey
from service.journal.contents import SCORES, AskContent, FeedbackContent, RecordId, ScoresContent, each_row
from service.journal.database import Database, Entry

SECRET = b"0123456789abcdef0123456789abcdef"


class Written:
    """A journal that a test writes to, as a service would."""

    def __init__(self, path):
        self.path, self.key = path, JournalKey.of(SECRET)
        self.batch = 1 << 40

    def open(self, **options):
        return Database(self.path, self.key, **options)

    def scores(self, rows, p_values=None, valid=None, model="table@1", rule=None, kept=None, request=None):
        """Record verdicts on rows, shape (B, W), all kept by default; the record ids."""
        number = len(rows)
        p_values = np.full(number, 0.5) if p_values is None else np.asarray(p_values)
        valid = np.ones(number, dtype=bool) if valid is None else np.asarray(valid)
        each = each_row(rows)
        content = ScoresContent(
            "key",
            model,
            f"sha256:{model}",
            "input",
            rule or {"name": "combined", "false_alarm": 0.01},
            number,
            (7 * np.ones(number, np.uint8) - ~valid).astype(np.uint8).tobytes(),
            ["log_likelihood"],
            (~valid).astype(np.uint8).tobytes(),
            p_values.astype("<f8").tobytes(),
            np.zeros(number).tobytes(),
            b"".join(map(self.key.hash, each)),
            rows.dtype.str,
            rows.shape[1],
            kept=kept,
            share=1.0 if kept is None else len(kept) / number,
        )
        self.batch += 1
        places = range(number) if kept is None else kept
        cells = [(self.batch, at, each[at]) for at in places]
        with self.open(may_create=True, durable=False) as database:
            database.append([Entry(SCORES, content, self.batch, request, cells=cells)])
        return [str(RecordId(self.batch, at)) for at in range(number)]

    def ask(self, drawn, others=(), model="table"):
        with self.open(durable=False) as database:
            database.append([Entry("ask", AskContent(model, list(drawn), list(others), 100))])

    def answer(self, record, label, key="someone", note=None):
        with self.open(durable=False) as database:
            hashed = None if note is None else self.key.hash(note.encode())
            database.append([Entry("feedback", FeedbackContent(key, record, "table", label, hashed), note=note)])


@pytest.fixture
def journal(tmp_path):
    return Written(tmp_path / "journal")
