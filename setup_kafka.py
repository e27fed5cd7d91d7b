"""Create the Kafka topics of the service, and tell or correct what differs from what is wanted.

Safe to run again and by several at once. Exit codes: 0 all topics are as wanted, or were made so;
1 something differs, failed, or no broker answered; 2 the configuration or the command line is wrong.
A dry run ends with the code of the run that it stands for.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
from typing import TYPE_CHECKING

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from config.faults import SettingsError
from config.settings import load_settings
from src.commands import DAY_SECONDS, one_line, refuse, seconds
from src.kafka_causes import NotConnectedError, causes_named
from src.topics import (
    Difference,
    Topic,
    TopicError,
    create_topics,
    differences,
    fix,
    missing_topics,
    wanted_topics,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.kafka import KafkaConfig

_QUIET_SECONDS = 2.0
_SHORTEST_WAIT_SECONDS = 1.0
_RECONNECT_MS = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    asked = _command_line(arguments)
    try:
        config = load_settings().kafka
    except SettingsError as error:
        return refuse(error)
    try:
        return _set_up(config, wait=asked.wait, dry_run=asked.dry_run, with_fix=asked.fix)
    except KeyboardInterrupt:
        return _fail("stopped before the end; run it again to finish")
    except (TopicError, KafkaError, OSError, ValueError, RuntimeError) as error:
        return _fail(one_line(error))


def _set_up(config: KafkaConfig, *, wait: float, dry_run: bool, with_fix: bool) -> int:
    try:
        admin = _connect(config, wait)
    except NotConnectedError as error:
        return _fail(f"no connection to Kafka at {_servers(config)}: {error}; check {error.check}")
    try:
        topics = wanted_topics(config)
        _say(f"Kafka at {_servers(config)}: wanted are {', '.join(topic.name for topic in topics)}")
        created, failed = _create(admin, missing_topics(admin, topics), dry_run=dry_run)
        existing = [topic for topic in topics if topic not in created + failed]
        left = _compare(admin, existing, dry_run=dry_run, with_fix=with_fix)
    finally:
        admin.close()
    if dry_run:
        _say("nothing was changed (--dry-run)")
    if any(difference.fixable for difference in left) and not with_fix:
        _say("run it with --fix to correct what can be corrected")
    return 1 if failed or left else 0


def _connect(config: KafkaConfig, wait: float) -> KafkaAdminClient:
    waiting = threading.Timer(_QUIET_SECONDS, _say, [f"waiting up to {wait:g} s for Kafka at {_servers(config)}"])
    waiting.daemon = True
    waiting.start()
    try:
        with causes_named():
            return KafkaAdminClient(
                **config.client_options(),
                bootstrap_timeout_ms=math.ceil(max(wait, _SHORTEST_WAIT_SECONDS) * 1000),
                reconnect_backoff_max_ms=_RECONNECT_MS,
            )
    finally:
        waiting.cancel()


def _create(admin: KafkaAdminClient, missing: list[Topic], *, dry_run: bool) -> tuple[list[Topic], list[Topic]]:
    """Create topics one by one; return those that were created and those that were refused."""
    created, failed = [], []
    for topic in missing:
        try:
            made = create_topics(admin, [topic], dry_run=dry_run)
        except TopicError as error:
            failed.append(topic)
            _fail(str(error))
            continue
        for each in made:
            _say(f"{each.name}: {'would be created' if dry_run else 'created'} ({each})")
        created += made
    return created, failed


def _compare(admin: KafkaAdminClient, existing: list[Topic], *, dry_run: bool, with_fix: bool) -> list[Difference]:
    """Tell what differs, correct it if asked to, and return the differences that are left."""
    found = differences(admin, existing)
    for topic in existing:
        if not any(difference.topic == topic for difference in found):
            _say(f"{topic.name}: as wanted ({topic})")
    left = []
    for difference in found:
        verdict = "differs"
        if not (with_fix and difference.fixable):
            left.append(difference)
        elif dry_run:
            verdict = "would be corrected"
        else:
            verdict = "corrected"
            fix(admin, difference)
        _say(f"{difference.topic.name}: {verdict}: {difference}")
    return left


def _servers(config: KafkaConfig) -> str:
    return ",".join(config.bootstrap_servers)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(line: str) -> int:
    sys.stderr.write(f"setup_kafka: {line}\n")
    return 1


def _command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog="The topics, partitions and replication come from the KAFKA_* settings.",
    )
    parser.add_argument(
        "--fix", action="store_true", help="correct configs and raise partitions where they differ"
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    parser.add_argument(
        "--wait",
        type=seconds(0.0, DAY_SECONDS),
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the broker (default: 60)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
