"""The documents say what is there: settings, metrics, commands, and the tests that FEATURES.md names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from config.settings import known_variables
from src.telemetry import COUNTERS, GAUGES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "GETTING_STARTED.md", "FEATURES.md", "BENCHMARKS.md", "CHANGELOG.md"]


def table(document: str, mark: str) -> dict[str, list[str]]:
    """Return the rows of the table behind a mark, by the name in their first cell."""
    text = (ROOT / document).read_text().partition(f"<!-- {mark}:")[2].partition("\n\n")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def shown(default: object) -> str:
    """Write a default as the README does."""
    if default is None or default == ():
        return "empty"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def test_the_readme_lists_every_setting_with_its_default_and_no_other() -> None:
    documented = {name: cells[0] for name, cells in table("README.md", "settings").items()}
    actual = {
        name: shown(section.model_fields[field].default) for name, (section, field) in known_variables().items()
    }
    assert documented == actual


def test_the_readme_lists_every_metric_with_its_meaning_and_no_other() -> None:
    assert {name: cells[0] for name, cells in table("README.md", "metrics").items()} == COUNTERS | GAUGES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_and_path_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", text)) <= targets
    paths = re.findall(r"`((?:src|tests|config|sandbox|benchmarks)/[\w/.]+\.\w+)", text)
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    links = re.findall(r"\]\(([\w./]+\.\w+)", text)
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_method_of_a_class_that_a_document_names_exists() -> None:
    """`Class.method` as the documents write it, where the class is ours; those of libraries are left alone."""
    classes = [
        one
        for part in ("src", "config")
        for path in (ROOT / part).glob("*.py")
        for one in ast.walk(ast.parse(path.read_text()))
        if isinstance(one, ast.ClassDef)
    ]
    members: dict[str, set[str]] = {one.name: set() for one in classes}
    for one in classes:
        members[one.name] |= {part.name for part in one.body if isinstance(part, ast.FunctionDef)}
    named = [
        (document, *found)
        for document in DOCUMENTS
        for found in re.findall(r"`([A-Z]\w+)\.([a-z_]\w*)(?:\(.*?\))?`", (ROOT / document).read_text())
    ]
    assert len([name for _, name, _ in named if name in members]) > 10
    assert [one for one in named if one[1] in members and one[2] not in members[one[1]]] == []


def reasons_of_unfilled_gaps() -> set[str]:
    """Return what the code gives as the reason when it gives ids up: words in its calls, or in who decides."""
    deciding, giving_up = {"_unfillable", "_for_good", "_ask"}, {"abandon", "gap_unfillable"}
    found: set[str] = set()
    for name in ("backfill", "continuity"):
        for one in ast.walk(ast.parse((ROOT / "src" / f"{name}.py").read_text())):
            decides = isinstance(one, ast.FunctionDef) and one.name in deciding
            gives_up = (
                isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr in giving_up
            )
            if decides or gives_up:
                found |= {word.value for word in ast.walk(one) if isinstance(word, ast.Constant) and word.value}
    return {word for word in found if isinstance(word, str) and re.fullmatch(r"[a-z_]+", word)}


def test_the_runbook_explains_every_reason_of_an_unfilled_gap_and_no_other() -> None:
    assert set(table("deploy/RUNBOOK.md", "reasons")) == reasons_of_unfilled_gaps()


def test_every_feature_names_a_test_or_a_command_that_exists() -> None:
    lines = [line for line in (ROOT / "FEATURES.md").read_text().splitlines() if line.startswith("- ")]
    assert len(lines) > 40
    for line in lines:
        named = re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", line)
        assert named or re.search(r"`make [a-z0-9-]+`", line), f"nothing shows: {line}"
        for path, name in named:
            assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
