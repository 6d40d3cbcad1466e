"""Everything that a deployment may choose, from `VOUCH_*` variables. What changes a score lives in the model's card."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import VouchError
from service.system.cpus import cpu_quota


class SettingsError(VouchError):
    """A `VOUCH_*` variable that cannot be used."""


class Settings(BaseSettings):
    """Read when the application is created, and frozen. Each field is the variable VOUCH_ + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="VOUCH_", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    store: str = Field(
        "model_store", description="the model store: a folder, or an fsspec URL such as s3://bucket/models"
    )
    store_cache: Path | None = Field(
        Path("~/.cache/vouch"), description="folder that keeps files of a store at a URL, by their digest"
    )
    store_poll_s: float = Field(
        10.0, ge=0, description="seconds between looks at the store for new versions and aliases; 0: only on SIGHUP"
    )
    shadow: str | None = Field(
        None,
        pattern="^[^@]+@[^@]+$",
        description="NAME@ALIAS that scores a share of NAME's requests, too, to be compared",
    )
    shadow_share: float = Field(0.1, ge=0, le=1, description="share of the requests that the shadow scores")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the network runs; auto: a GPU if there is one"
    )
    threads: int = Field(0, ge=0, description="inference threads; 0: one for each CPU of the container's quota")
    api_keys_file: Path | None = Field(
        None, description="file of `sha256-of-key scope,scope` lines; without it no key is asked for"
    )
    allow_anonymous: bool = Field(False, description="1: listen beyond loopback without keys")
    open_paths: tuple[str, ...] = Field(
        (), description='JSON list of paths that need no key beside the probes, such as ["/metrics", "/docs"]'
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="largest request body")
    max_held_bytes: int = Field(
        512 * 2**20,
        ge=1024,
        description="most bytes of all bodies that are being read or parsed; JSON takes several times as much meanwhile",
    )
    max_header_bytes: int = Field(64 * 2**10, ge=1024, description="largest request head")
    header_timeout_s: float = Field(
        20.0, gt=0, description="seconds that a request's head may take, and in which nothing of an answer may be read"
    )
    max_rows: int = Field(10_000, ge=1, description="most rows in a request")
    max_pixels: int = Field(4_000_000, ge=1, description="most pixels in an encoded image")
    max_draws: int = Field(100, ge=0, description="most posterior draws a row")
    max_num: int = Field(1_000, ge=1, description="most samples in a request")
    max_grid: int = Field(50, ge=1, description="largest side of the manifold's grid")
    max_queue_evaluations: int = Field(
        2_000_000, ge=1, description="most decoder evaluations (rows x samples) that may wait"
    )
    batch_evaluations: int = Field(
        8192, ge=1, description="decoder evaluations that a batch may cost, if that is more than one block of rows"
    )
    batch_delay_ms: float = Field(0.0, ge=0, description="how long a batch that is not full may wait for more rows")
    drain_s: float = Field(5.0, ge=0, description="seconds of serving after SIGTERM, while /readyz says 503")
    request_timeout_s: float = Field(120.0, gt=0, description="deadline of a request; X-Request-Timeout shortens it")
    loaded_versions: int = Field(8, ge=1, description="most model versions held in memory beside the served ones")
    drift_level: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="probability with which the drift monitor of a model may ever speak without reason",
    )
    drift_folder: Path | None = Field(
        None, description="folder that keeps the drift monitors' state for the next start; one for each replica"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe log line")

    @field_validator("store_cache", "api_keys_file", "drift_folder", mode="before")
    @classmethod
    def empty_is_none(cls, value: object) -> object:
        """An empty variable switches off what a path would switch on."""
        return None if value == "" else value

    def thread_count(self) -> int:
        """Inference threads: those set, or the CPUs that the container may use."""
        return self.threads or cpu_quota()

    def cache(self) -> Path | None:
        """The cache's folder, with the home folder in it spelled out."""
        return None if self.store_cache is None else self.store_cache.expanduser()


def read_settings() -> Settings:
    """The settings from the environment.

    Raises:
        SettingsError: names the variable and what was expected.
    """
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in problem["loc"]).upper()
        raise SettingsError(f"VOUCH_{name}: {problem['msg']}") from error
