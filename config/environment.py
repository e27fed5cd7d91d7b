"""What is set, in the environment and in `.env`, whichever section it belongs to."""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from config.faults import SettingsError
from config.section import ENCODING


def check_env_file(env_file: str | None) -> None:
    """Refuse what python-dotenv would read past with a warning, or raise for."""
    if not env_file or not Path(env_file).is_file():
        return
    try:
        with Path(env_file).open(encoding=ENCODING) as lines:
            wrong = [binding.original.line for binding in parse_stream(lines) if binding.error]
    except (OSError, UnicodeError) as error:
        raise SettingsError([f"{env_file}: must be a text file in UTF-8 that can be read: {error}"]) from None
    if wrong:
        raise SettingsError([f"{env_file} line {line}: must be NAME=value or a # comment" for line in wrong])


def given_variables(env_file: str | None) -> dict[str, str]:
    """Return what is set, by upper-case name; an empty value counts as not set."""
    from_file = dotenv_values(env_file, encoding=ENCODING) if env_file and Path(env_file).is_file() else {}
    given = {name.upper(): value for name, value in from_file.items() if value}
    return given | {name.upper(): value for name, value in os.environ.items() if value}
