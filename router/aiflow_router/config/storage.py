"""Where what outlives the process is kept."""

from __future__ import annotations

from pydantic import Field, field_validator
from sqlalchemy import make_url

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

    def shown(self) -> str:
        """The URL without its password."""
        return make_url(self.url).render_as_string(hide_password=True)
