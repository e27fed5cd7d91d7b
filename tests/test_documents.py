"""The documents say what is there: settings, metrics, commands, and the tests that FEATURES.md names."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from config.settings import known_variables
from src.telemetry import COUNTERS, GAUGES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *("README.md", "ARCHITECTURE.md", "GETTING_STARTED.md", "FEATURES.md", "BENCHMARKS.md", "CHANGELOG.md"),
    *sorted(str(path.relative_to(ROOT)) for part in ("deploy", "docs") for path in (ROOT / part).glob("*.md")),
    "sandbox/exchange/README.md",
]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
MAKE_VARIABLES = set(re.findall(r"\$\((?:or \$\()?([A-Z]+)\)", MAKEFILE))
OURS = ("src", "config", "sandbox", "benchmarks", "tests")


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


def code_in(text: str) -> str:
    """Return what a document shows as code, in its lines and in blocks, without the comments of a shell."""
    parts = text.split("```")
    spans = [span for part in parts[::2] for span in re.findall(r"`([^`]+)`", part)]
    return "\n".join([*spans, *(re.sub(r"(?m)(^|\s)#.*", "", block) for block in parts[1::2])])


def faults_of_commands(text: str) -> list[str]:
    """Name the targets and variables of `make`, and the modules of `python -m`, that are not there."""
    code = code_in(text)
    said = re.findall(r"\bmake((?: [A-Z]+=[^\s`]*)*) ([a-z][a-z0-9-]*)((?: [A-Z]+=[^\s`]*)*)", code)
    targets = {target for _, target, _ in said}
    variables = set(re.findall(r"([A-Z]+)=", " ".join(before + after for before, _, after in said))) - {"PYTHON"}
    modules = set(re.findall(r"python3? (?:-[A-Z] \S+ )?-m ([\w.]+)", code))
    missing = [f"make {target}" for target in targets - TARGETS]
    missing += [f"make {variable}=" for variable in variables - MAKE_VARIABLES]
    return sorted(missing + [f"python -m {module}" for module in modules if not can_be_run(module)])


def can_be_run(module: str) -> bool:
    """Whether `python -m` finds it."""
    if module.partition(".")[0] not in OURS:
        return importlib.util.find_spec(module) is not None
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def faults_of_tests(line: str) -> list[str]:
    """Name the tests of a line that are not there; a name alone is of the file named last."""
    faults, path = [], ""
    for named, name in re.findall(r"`(tests/\w+\.py)?(?:::)?(test_\w+)?`", line):
        path = named or path
        if (named or name) and not (path and (ROOT / path).is_file()):
            faults.append(f"{path or name} is not there")
        elif name and f"def {name}(" not in (ROOT / path).read_text():
            faults.append(f"{path} has no {name}")
    return faults


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_path_and_test_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    assert faults_of_commands(text) == []
    paths = re.findall(r"`((?:src|tests|config|sandbox|benchmarks|deploy|docs)/[\w/.]+\.\w+)", text)
    assert [path for path in paths if not (ROOT / path).is_file() and "/mine/" not in path] == []  # the reader's
    links = re.findall(r"\]\(([\w./]+\.\w+)", text)
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).is_file()] == []
    assert [fault for line in text.splitlines() for fault in faults_of_tests(line)] == []


def test_what_is_not_there_is_found_in_each_form_in_which_a_document_names_it() -> None:
    text = "`make nought SECONDS=9`, `make soak NOUGHT=…`, `make test`, `make`\n```\nmake naught  # make noise\n"
    text += (
        ".venv/bin/python -m sandbox.nought cluster\npython3 -m venv .venv\n```\n`python -m nought`, make sure\n"
    )
    assert faults_of_commands(text) == [
        *("make NOUGHT=", "make naught", "make nought"),
        *("python -m nought", "python -m sandbox.nought"),
    ]
    here = "`tests/test_documents.py::test_nought`, `test_naught`, `::test_none`, `tests/nought.py`"
    there = "`tests/test_documents.py`, `test_the_runbook_explains_every_reason_of_an_unfilled_gap_and_no_other`"
    assert faults_of_tests(here) == [
        *(f"tests/test_documents.py has no {name}" for name in ("test_nought", "test_naught", "test_none")),
        "tests/nought.py is not there",
    ]
    assert faults_of_tests(there) == []


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
        assert re.search(r"`tests/\w+\.py(?:::test_\w+)?`|`make [a-z0-9-]+", line), f"nothing shows: {line}"
        assert faults_of_tests(line) == []
