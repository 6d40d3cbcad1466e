"""The application in this process, without sockets."""

from contextlib import contextmanager
from functools import partial

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from service.settings import Settings
from service.web.app import create_app
from tests.tools import eventually


class InProcess:
    """A client that calls an application, whose event loop runs in another thread."""

    def __init__(self, app, portal):
        self.app, self.portal = app, portal
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://in-process")

    def request(self, method, path, **options):
        return self.portal.call(partial(self.client.request, method, path, **options))

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)


@contextmanager
def in_process_client(store, **settings):
    """A client of an application that serves a store, with its models loaded; the application is its `app`."""
    app = create_app(Settings(store=str(store), store_cache=None, store_poll_s=0, threads=1, **settings))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(app.router.lifespan_context(app)):
        client = InProcess(app, portal)
        eventually(lambda: client.get("/readyz").status_code == 200, 60)
        yield client


@pytest.fixture(scope="session")
def in_process(tiny_store):
    """A client of an application that serves the tiny models."""
    with in_process_client(tiny_store, max_rows=2000) as client:
        yield client
