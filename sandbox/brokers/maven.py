"""Apache Kafka from Maven Central: the jars of one version in one git-ignored folder, fetched once."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET  # the files are this project's own
from pathlib import Path

from sandbox.brokers.child import BrokerError

_HERE = Path(__file__).parent
_BUILD = _HERE.parents[1] / "build"
_FETCH_SECONDS = 600
_LAST_LINES = 15


def kafka_version(pom: str) -> str:
    """Return the version that `sandbox/brokers/<pom>/pom.xml` names."""
    version = ET.parse(_pom(pom)).getroot().findtext("{*}version")  # noqa: S314 - our own file
    if version is None:
        raise BrokerError(f"{_pom(pom)} names no version")
    return version


def fetched(pom: str, build: Path = _BUILD) -> Path:
    """Return the folder of jars (`<build>/kafka-VERSION/libs`), fetching it first when it is not there.

    The folder gets its name only when the download is complete, so that an interrupted one is not mistaken
    for it, and two fetches at the same time do no harm. Raises `BrokerError` when `java` or `mvn` is missing
    or the download fails (10 minutes at most).
    """
    home = build / f"kafka-{kafka_version(pom)}"
    if not home.is_dir():
        build.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=build, prefix=f"{home.name}.incomplete-") as unfinished:
            part = Path(unfinished) / "kafka"
            _copy_dependencies(pom, part / "libs")
            _give_name(part, home)
    return home / "libs"


def required(program: str, package: str) -> str:
    """Return the path of a program, or raise `BrokerError` that names the package to install."""
    path = shutil.which(program)
    if path is None:
        raise BrokerError(
            f"`{program}` is not on the PATH, and Apache Kafka needs it: install it (Debian and Ubuntu: "
            f"apt-get install {package}; macOS: brew install {'maven' if program == 'mvn' else 'openjdk'}), "
            "or use the embedded broker, which needs neither Java nor Maven"
        )
    return path


def _pom(pom: str) -> Path:
    return _HERE / pom / "pom.xml"


def _copy_dependencies(pom: str, libs: Path) -> None:
    # Maven wants a Java too; asking for it here names the missing one by its own name.
    required("java", "default-jre-headless")
    maven = [required("mvn", "maven"), "--quiet", "--batch-mode", "--file", str(_pom(pom))]
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={libs}", "-DincludeScope=runtime"]
    try:
        done = subprocess.run([*maven, *goal], capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BrokerError(
            f"Maven did not fetch {_pom(pom)} within {_FETCH_SECONDS} s: is there a network?"
        ) from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LAST_LINES:])
        raise BrokerError(f"Maven could not fetch what {_pom(pom)} names:\n{said}")


def _give_name(part: Path, home: Path) -> None:
    try:
        part.rename(home)
    except OSError:
        if not home.is_dir():  # otherwise somebody else finished first, with the same jars
            raise
