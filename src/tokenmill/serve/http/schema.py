"""What the admin routes accept."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class AbortRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    abort_all: bool = False
    session_id: Annotated[int, Field(ge=-1, lt=1 << 63)] = -1
    request_id: Annotated[str, Field(max_length=128)] | None = None
