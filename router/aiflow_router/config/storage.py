"""Where what outlives the process is kept."""

from __future__ import annotations

from pydantic import Field, field_validator

from aiflow_router.config.values import Section
from aiflow_router.storage.database import parsed


class Storage(Section):
    # SQLite for one router; postgresql://USER:PASSWORD@HOST/DATABASE for several.
    url: str = Field(default="sqlite:///aiflow.db", repr=False)

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parsed(value)
        return value
