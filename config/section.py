"""What all sections of the settings share: how they are read, and the forms of their values."""

from __future__ import annotations

import json
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode]

ENCODING = "utf-8-sig"  # some editors start `.env` with a byte order mark, which would hide its first variable


class Section(BaseSettings):
    """Settings whose variables begin alike; frozen, and read when constructed."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file_encoding=ENCODING,
        str_strip_whitespace=True,
        hide_input_in_errors=True,
    )
    prefix: ClassVar[str] = ""

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Map each environment variable of this section to its field."""
        return {(cls.prefix + field).upper(): field for field in cls.model_fields}


def listed(value: object) -> object:
    """Split `A,B` or the JSON list `["A","B"]`; blanks fall away, order stays, repeats are dropped."""
    if not isinstance(value, str):
        return value
    try:
        parts = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
    except (ValueError, RecursionError):
        parts = [None]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError('must be names separated by commas, or a JSON list of them such as ["A","B"]')
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def lowered(value: object) -> object:
    """Write text in lower case; for a validator before others."""
    return value.lower() if isinstance(value, str) else value


def uppered(value: object) -> object:
    """Write text in upper case; for a validator before others."""
    return value.upper() if isinstance(value, str) else value
