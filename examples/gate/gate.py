"""An application that asks Vouch before it accepts an image.

    VOUCH_URL=http://127.0.0.1:8000 uvicorn --app-dir examples/gate gate:create --factory --port 8080

POST /images takes a PNG or JPEG. What Vouch calls valid is forwarded to the inbox, what it does not to the quarantine, each
with a note of why. Where Vouch does not answer in time, the image goes where GATE_WHEN_UNSURE says, and the sender gets an
answer all the same: the gate's own deadline holds whether Vouch is slow, stalled or gone. After a failure Vouch is left
alone for a moment, so that a crowd of senders does not wait for it in turn. Images that are held are asked about again.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.client import AsyncClient
from service.errors import InputError, UnavailableError, VouchError

log = logging.getLogger("gate")
MAX_BYTES = 1_000_000
FORMATS = ("PNG", "JPEG")
Place = Literal["inbox", "quarantine", "held"]
PLACES: tuple[Place, ...] = ("inbox", "quarantine", "held")


class Settings(BaseSettings):
    """GATE_* variables, and where Vouch is."""

    model_config = SettingsConfigDict(env_prefix="GATE_")

    vouch_url: str = Field("http://127.0.0.1:8000", validation_alias="VOUCH_URL")
    vouch_key: str | None = Field(None, validation_alias="VOUCH_KEY")
    folder: Path = Path("gate")
    model: str = "mnist"
    false_alarm: float = Field(0.01, gt=0, lt=1, description="the share of valid images that may be quarantined")
    deadline_s: float = Field(1.0, gt=0, description="in which the gate answers, whatever Vouch does")
    when_unsure: Place = Field("held", description="where an image goes that Vouch said nothing of")
    rest_s: float = Field(2.0, ge=0, description="for how long Vouch is left alone after it did not answer")
    ask_again_s: float = Field(5.0, gt=0, description="between two looks at what is held")


class Decision(BaseModel):
    """Where an image went, and why: by what Vouch said, or by the policy for when it says nothing."""

    id: str
    place: Place
    reason: str
    by_policy: bool = False
    p_value: float | None = None


@dataclass
class Gate:
    """Asks and files."""

    settings: Settings
    vouch: AsyncClient
    rests_until: float = 0.0

    async def decide(self, content: bytes, image: np.ndarray, started: float) -> Decision:
        """Ask within what is left of the deadline, file the image and say where it is."""
        left = self.settings.deadline_s * 0.9 - (time.monotonic() - started)  # the rest is for the file and the answer
        decision = await self.asked(image, left)
        self.file(content, decision)
        return decision

    async def asked(self, image: np.ndarray, left_s: float) -> Decision:
        """What Vouch says, or the policy where it says nothing."""
        number = uuid.uuid4().hex
        if time.monotonic() < self.rests_until:
            return self.unsure(number, "Vouch did not answer a moment ago")
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                verdicts = await self.vouch.score(image[None], rule="combined", false_alarm=self.settings.false_alarm)
        except InputError as error:
            return Decision(id=number, place="quarantine", reason=f"no image that the model reads: {error}")
        except (UnavailableError, TimeoutError) as error:
            self.rests_until = time.monotonic() + self.settings.rest_s
            return self.unsure(number, f"Vouch did not answer: {type(error).__name__}")
        except VouchError as error:  # a wrong key, no such model: no image's fault
            return self.unsure(number, f"Vouch refused: {error}")
        p_value = float(verdicts.p_value[0])
        if verdicts.valid[0]:
            return Decision(id=number, place="inbox", reason=f"valid, by {verdicts.model}", p_value=p_value)
        return Decision(id=number, place="quarantine", reason=f"invalid, by {verdicts.model}", p_value=p_value)

    def unsure(self, number: str, reason: str) -> Decision:
        """The policy."""
        return Decision(id=number, place=self.settings.when_unsure, reason=reason, by_policy=True)

    def file(self, content: bytes, decision: Decision) -> None:
        """The image, whole or not at all, and then the note: what has no note was never answered."""
        folder = self.settings.folder / decision.place
        for name, data in (
            (f"{decision.id}.image", content),
            (f"{decision.id}.json", decision.model_dump_json().encode()),
        ):
            temporary = folder / f".{name}"
            temporary.write_bytes(data)
            temporary.replace(folder / name)

    async def ask_again(self) -> None:
        """Every few seconds, decide about what is held, one image after the other, while Vouch answers."""
        while True:
            await asyncio.sleep(self.settings.ask_again_s)
            try:
                await self.ask_for_held()
            except OSError:  # a full disk, say: what is held stays there
                log.exception("what is held could not be decided")

    async def ask_for_held(self) -> None:
        """Once; an image that is filed but not yet taken from here when the program ends is decided again, under its id."""
        notes = (self.settings.folder / "held").glob("*.json")
        for note in sorted(notes, key=lambda path: path.stat().st_mtime):
            path = note.with_suffix(".image")
            content = path.read_bytes()
            decision = await self.asked(read_image(content), self.settings.deadline_s)
            if decision.by_policy:
                return
            self.file(content, decision.model_copy(update={"id": json.loads(note.read_text())["id"]}))
            note.unlink()
            path.unlink()


def read_image(content: bytes) -> np.ndarray:
    """A picture's grey levels, shape (H, W), uint8.

    Raises:
        HTTPException: it is none.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError):
        raise HTTPException(400, "the body is no PNG or JPEG") from None


def create() -> FastAPI:
    """The application, by its environment."""
    settings = Settings()
    for place in PLACES:
        (settings.folder / place).mkdir(parents=True, exist_ok=True)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(
            settings.vouch_url, model=settings.model, key=settings.vouch_key, deadline_s=settings.deadline_s
        ) as vouch:
            app.state.gate = Gate(settings, vouch)
            again = asyncio.create_task(app.state.gate.ask_again())
            yield
            again.cancel()

    app = FastAPI(title="gate", lifespan=lifespan)

    @app.post("/images")
    async def images(request: Request) -> Decision:
        """Take an image."""
        started = time.monotonic()
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BYTES:
                raise HTTPException(413, f"at most {MAX_BYTES:,} bytes are taken")
        gate: Gate = request.app.state.gate
        return await gate.decide(bytes(content), read_image(bytes(content)), started)

    @app.get("/counts")
    def counts() -> dict[str, int]:
        """How many images are where."""
        return {place: len(list((settings.folder / place).glob("*.json"))) for place in PLACES}

    @app.get("/livez")
    async def livez() -> dict[str, bool]:
        """The gate answers, whatever Vouch does."""
        return {"alive": True}

    return app
