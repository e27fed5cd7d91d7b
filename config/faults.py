"""What is wrong with the settings, in words: one readable line per fault, and no secret in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

    from config.section import Section

_SHOWN = 200  # characters of a wrong value


class SettingsError(Exception):
    """The configuration is wrong; `faults` holds one line each: variable, value, what is allowed."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def section_faults(section: type[Section], error: ValidationError, given: dict[str, str]) -> list[str]:
    """Tell each fault that pydantic found in a section; `given` is what was set, by variable."""
    faults = []
    for details in error.errors(include_url=False):
        field = str(details["loc"][0])
        variable, allowed = (section.prefix + field).upper(), _allowed(section, field, details["msg"])
        other = details.get("ctx", {}).get("other")
        if other and variable not in given:  # what was set is the other one
            variable, allowed = other, allowed.replace(other, variable)
        faults.append(f"{variable}={shown(variable, given)}: {allowed}")
    return faults


def shown(variable: str, given: dict[str, str]) -> str:
    """Quote a wrong value in one line, without what is secret in it or may be."""
    value = given.get(variable, "")
    secret_file = variable.endswith("_FILE") and not value.startswith(
        ("/", ".")
    )  # the secret instead of its file?
    if secret_file or variable.endswith("PASSWORD"):
        return "***"
    if variable.endswith(("_URL", "_SERVERS")):
        value = without_secrets(value)
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")


def without_secrets(address: str) -> str:
    """Hide the user and the password of addresses, and keys in their query."""
    address = re.sub(r"//[^/,]*@", "//***@", address)
    address = re.sub(r"(^|,)(\w+://|(?!\w+://))[^,]*:[^,]*@", r"\1\2***@", address)  # `@` is in streams too
    return re.sub(r"(?i)((?:key|token|secret|password|signature)=)[^&#]*", r"\1***", address)


def _allowed(section: type[Section], field: str, message: str) -> str:
    """Say in words of our own what a number or a flag may be; for the rest the message says it."""
    declared = section.model_fields[field]
    if message.startswith("Value error, "):  # of a check of our own
        return message.removeprefix("Value error, ")
    if declared.annotation is bool:
        return "must be true or false"
    if declared.annotation not in (int, float):
        message = message.replace("String should have", "must have")
        return message.replace("Input should be", "must be")
    words = {"gt": "greater than", "ge": "at least", "le": "at most"}
    bounds = [
        f"{word} {getattr(limit, name)}"
        for limit in declared.metadata
        for name, word in words.items()
        if getattr(limit, name, None) is not None
    ]
    kind = "a whole number" if declared.annotation is int else "a number"
    return f"must be {kind} {' and '.join(bounds)}"
