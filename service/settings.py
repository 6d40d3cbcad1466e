"""Settings of a deployment, from `VOUCH_*` variables. What changes a score is in the model's card instead."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import VouchError
from service.system.cpus import cpu_quota


class SettingsError(VouchError):
    """An environment variable is invalid, or another setting that it needs is missing."""


class Settings(BaseSettings):
    """Settings of one application, read when it is created, and frozen. VOUCH_MAX_ROWS sets `max_rows`, and so on."""

    model_config = SettingsConfigDict(env_prefix="VOUCH_", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    store: str = Field(
        "model_store", description="the model store: a folder, or an fsspec URL such as s3://bucket/models"
    )
    store_cache: Path | None = Field(
        Path("~/.cache/vouch"), description="cache folder for files of a remote store, by sha256"
    )
    store_poll_s: float = Field(
        10.0, ge=0, description="seconds between polls of the store for new versions and aliases; 0: only on SIGHUP"
    )
    shadow: str | None = Field(
        None,
        pattern="^[^@]+@[^@]+$",
        description="NAME@ALIAS to run as a shadow of NAME, for comparison",
    )
    shadow_share: float = Field(0.1, ge=0, le=1, description="share of NAME's requests that the shadow also scores")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs; auto: a GPU if there is one"
    )
    threads: int = Field(0, ge=0, description="inference threads; 0: one per CPU of the container's quota")
    api_keys_file: Path | None = Field(
        None, description="file of API keys (`vouch keys`); without it no key is required"
    )
    allow_anonymous: bool = Field(False, description="1: allow listening beyond loopback without API keys")
    open_paths: tuple[str, ...] = Field(
        (),
        description='JSON list of paths that need no API key, in addition to the probes, such as ["/metrics", "/docs"]',
    )
    policy: str | None = Field(
        None,
        description="the only rule that callers may ask for, and the one for those who ask for none, written like a query: "
        "rule=combined&false_alarm=0.01, or percentiles=1,99",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description='JSON list of the names by which the service may be asked, such as ["vouch.example.org"], or '
        '["*"]; with API keys, any by default; else addresses and names without a dot, which no web page has',
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description='JSON list of the origins whose web pages may ask, such as ["https://app.example.org"], or ["*"]; '
        "none by default. No page may use what scope admin is for",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="JSON list of the addresses or networks of proxies whose X-Forwarded-For names the client"
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="largest request body")
    max_held_bytes: int = Field(
        512 * 2**20,
        ge=1024,
        description="most bytes that all requests in progress hold: bodies, their rows, their answers",
    )
    max_header_bytes: int = Field(64 * 2**10, ge=1024, description="largest request head")
    header_timeout_s: float = Field(
        20.0,
        gt=0,
        description="seconds for a request's head to arrive; also how long a client may read nothing of its answer",
    )
    max_rows: int = Field(10_000, ge=1, description="most rows in a request")
    max_pixels: int = Field(4_000_000, ge=1, description="most pixels in an encoded image")
    max_draws: int = Field(100, ge=0, description="most posterior draws per row")
    max_num: int = Field(1_000, ge=1, description="most samples per request")
    max_grid: int = Field(50, ge=1, description="largest side of the manifold grid, in points")
    max_queue_evaluations: int = Field(
        2_000_000,
        ge=1,
        description="most decoder evaluations (rows x samples) that may wait or run; one of n million multiplications "
        "counts n times",
    )
    batch_evaluations: int = Field(
        8192, ge=1, description="most decoder evaluations per batch; a batch is at least one block of rows"
    )
    batch_delay_ms: float = Field(0.0, ge=0, description="milliseconds that a batch with free room waits for more rows")
    drain_s: float = Field(5.0, ge=0, description="seconds to keep serving after SIGTERM, while /readyz answers 503")
    request_timeout_s: float = Field(
        120.0, gt=0, description="seconds that a request may take; the header X-Request-Timeout shortens this"
    )
    loaded_versions: int = Field(
        8, ge=1, description="most model versions kept in memory in addition to the served ones"
    )
    drift_level: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="chance that a model's drift monitor ever raises a false alarm, and that any key's does",
    )
    drift_folder: Path | None = Field(
        None, description="folder for the drift monitors' state across restarts; one for each replica"
    )
    journal: Path | None = Field(
        None,
        description="the journal of verdicts: a file on a local disk, one for each process; without it there is none",
    )
    journal_key: Path | None = Field(
        None, description="file with at least 32 random bytes or hexadecimal digits, under which the journal is kept"
    )
    journal_mode: Literal["required", "best-effort"] = Field(
        "best-effort",
        description="required: no verdict leaves before its record is on the disk; best-effort: records that cannot be "
        "written are counted",
    )
    journal_rows: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of scored rows that are kept with the journal, drawn at random whatever their verdicts; 1: all",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="lowest level that is logged")

    @field_validator("port", mode="before")
    @classmethod
    def not_a_link(cls, value: object) -> object:
        """Pass over what Kubernetes sets for a Service that is called vouch: tcp://10.96.12.7:80."""
        return cls.model_fields["port"].default if str(value).startswith(("tcp://", "udp://")) else value

    @field_validator("store_cache", "api_keys_file", "drift_folder", "policy", "journal", "journal_key", mode="before")
    @classmethod
    def empty_is_none(cls, value: object) -> object:
        """Read an empty variable as None: the feature is off."""
        return None if value == "" else value

    def thread_count(self) -> int:
        """Number of inference threads: `threads`, or one per CPU that the container may use."""
        return self.threads or cpu_quota()

    def cache(self) -> Path | None:
        """The cache folder with `~` expanded, or None; also for a user without a home, which some platforms run as."""
        try:
            return None if self.store_cache is None else self.store_cache.expanduser()
        except RuntimeError:
            return None


def read_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: names the variable and what was expected.
    """
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in problem["loc"]).upper()
        raise SettingsError(f"VOUCH_{name}: {problem['msg']}") from error
