"""Client for the service: `pip install '.[client]'`.

    with Client("http://127.0.0.1:8000", model="mnist", deadline_s=2.0) as vouch:
        accepted = rows[vouch.score(rows, false_alarm=0.01).valid]

Arrays are sent as npy files, rows of named columns (data frames, dicts) as JSON, files as a form. If the service
refuses a request, the client raises the error that a Scorer would raise (`service.errors`). If the queue is full, or the
service is not ready or unreachable, the client waits for as long as the service asks and retries, until the deadline. Each
attempt tells the service how much time is left. A call that cannot finish in time raises `DeadlineError`, or the error of
its last attempt.
"""

from service.client.answers import ERRORS, Encoded, Verdicts
from service.client.calls import ScoreQuery
from service.client.clients import AsyncClient, Client

__all__ = ["ERRORS", "AsyncClient", "Client", "Encoded", "ScoreQuery", "Verdicts"]
