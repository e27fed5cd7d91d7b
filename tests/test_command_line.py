"""`main.py` on the command line, and both programs on a system without the signals that they wait for."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from config.settings import SpoolConfig
from src.events import Event, Route
from src.spool import FILE, Spool

PROGRAMS = ("main.py", "monitoring.py", "setup_kafka.py", "consumer_example.py", "dead_letters.py")
ROOT = Path(__file__).resolve().parent.parent
WITHOUT = """
import pathlib, runpy, signal, sys
program, *names = sys.argv[1:]
for name in names:
    delattr(signal, name)
sys.argv = [program]
sys.path.insert(0, str(pathlib.Path(program).parent))
runpy.run_path(program, run_name="__main__")
"""
ON_A_FULL_DISK = """
import pathlib, resource, runpy, sys
del sys.argv[0]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MACOS = ["sigtimedwait", "sigwaitinfo"]
WINDOWS = [*MACOS, "pthread_sigmask", "sigwait", "setitimer", "SIGUSR1", "SIGALRM", "SIGHUP", "SIGWINCH"]


def run(cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_says_what_configures_it_and_starts_nothing(option: str, tmp_path: Path) -> None:
    ran = run(tmp_path, "-X", "importtime", str(ROOT / "main.py"), option)
    assert ran.returncode == 0
    assert all(word in ran.stdout for word in ("usage: ", "environment", ".env.example", "exit codes: 0"))
    assert "src" not in {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--dry-run"], ["BTCUSDT", "ETHUSDT"], ["--help", "me"], [""]])
def test_any_other_argument_is_refused_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    ran = run(tmp_path, str(ROOT / "main.py"), *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"main.py: takes no arguments, not {' '.join(arguments)!r}; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacking", [MACOS, WINDOWS])
@pytest.mark.parametrize("program", ["main.py", "monitoring.py"])
def test_where_signals_cannot_be_waited_for_it_says_so(program: str, lacking: list[str], tmp_path: Path) -> None:
    ran = run(tmp_path, "-c", WITHOUT, str(ROOT / program), *lacking)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert "runs on Linux; on macOS and Windows" in line


def test_a_spool_that_cannot_be_written_is_named_with_who_has_to_be_let_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "spool")
    ran = run(tmp_path, str(ROOT / "main.py"), SPOOL_PATH=folder)
    assert (ran.returncode, ran.stdout) == (2, "")
    says = f"{folder}: Not a directory; must be a folder that user {os.getuid()} may write to"
    assert ran.stderr == f"SPOOL_PATH={folder!r}: {says}\n"


def test_a_spool_that_another_process_works_on_is_named_with_what_to_do(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = run(tmp_path, str(ROOT / "main.py"), SPOOL_PATH=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    says = "another process works on this spool; stop it, or give each service its own SPOOL_PATH"
    assert ran.stderr == f"SPOOL_PATH={str(tmp_path)!r}: {tmp_path}: {says}\n"


def test_a_disk_without_room_to_redirect_what_is_on_it_is_named_with_what_to_do(tmp_path: Path) -> None:
    old = Route("trade", "topic-of-before", b"BTCUSDT", b"", 0, b"")
    with closing(Spool(SpoolConfig(path=tmp_path, min_free_bytes=0))) as spool:
        spool.append([Event(old, b"x" * 300, 1, number) for number in range(1, 5_001)])
    ran = run(tmp_path, "-c", ON_A_FULL_DISK, str(ROOT / "main.py"), SPOOL_PATH=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    says = f"see to it that the disk is well, has room, and that user {os.getuid()} may write to it"
    assert re.fullmatch(rf"SPOOL_PATH='{tmp_path}': {tmp_path / FILE}: (disk|database)[^;]+; {says}\n", ran.stderr)
    with closing(Spool(SpoolConfig(path=tmp_path, min_free_bytes=0))) as spool:
        assert spool.count == 5_000


def test_no_test_runs_a_program_in_the_folder_where_the_users_env_file_is() -> None:
    found = []
    for path in (ROOT / "tests").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            folders = [each.value for each in getattr(call, "keywords", ()) if each.arg == "cwd"]
            in_root = any(
                isinstance(folder, ast.Name) and folder.id in ("ROOT", "REPOSITORY") for folder in folders
            )
            if in_root and any(program in ast.unparse(call) for program in PROGRAMS):
                found.append(f"{path.name}: {ast.unparse(call)}")
    assert found == []
