"""List the records that Kafka did not take as they are, and send them again to the topics they were meant for.

They are in the topic KAFKA_TOPIC_DEAD_LETTERS, or, where that did not take them either, in a table of the spool
(SPOOL_PATH), which the service has to itself while it runs. What was sent again is written into the gap ledger, so
that `monitoring.py --completeness` counts it no more. Exit codes: 0 all that was asked was done; 1 something was
not sent or not to be read; 2 the configuration or the command line is wrong.
"""
# ruff: noqa: T201 - a command speaks to its user

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3.0.12 warns when imported on 3.11
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError
    from kafka.structs import OffsetAndMetadata

    from src.kafka_causes import NotConnectedError, causes_named
    from src.kafka_producer import open_producer

from config.faults import SettingsError
from config.settings import load_settings
from config.shards import spool_folders
from src.commands import DAY_SECONDS, one_line, refuse, seconds
from src.events import Event, Route
from src.ledger import Ledger
from src.lost import ids_of
from src.spool import FILE, Spool, SpoolFailed, SpoolUnusable
from src.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from kafka import KafkaProducer

    from config.kafka import KafkaConfig
    from config.settings import Settings, SpoolConfig
    from src.outbox import Note

TABLE, TOPIC = "table", "topic"
_AT_ONCE = 200
_ANSWER_SECONDS = 30.0
_POLL_MS = 500
_REMEMBERED = 3_500  # bytes of a commit's metadata; brokers take 4,096


class Letter(NamedTuple):
    """A dead letter wherever it lies; `id` is its number in the table, or `partition:offset` in the topic."""

    place: str
    id: str
    died_ms: int
    reason: str
    error: str
    topic: str
    key: bytes | None
    event_type: str
    timestamp_ms: int
    value: bytes

    @property
    def event(self) -> Event:
        """Return the event that it was."""
        return Event(Route(self.event_type, self.topic, self.key, b"", 0, b""), self.value, self.timestamp_ms)

    def shown(self) -> dict[str, object]:
        """Return it as `list` prints it."""
        died = datetime.fromtimestamp(self.died_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return {
            "place": self.place,
            "id": self.id,
            "time": died.replace("+00:00", "Z"),
            "reason": self.reason,
            "topic": self.topic,
            "key": None if self.key is None else self.key.decode("utf-8", "backslashreplace"),
            "size": len(self.value),
            "error": self.error,
        }


class _Trouble(Exception):  # noqa: N818 - named after the fact
    """Something could not be read or sent; the message is one line."""


class Table:
    """The dead letters in the spool, or in that of one of several shards: then its folder's name is in the ids."""

    def __init__(self, config: SpoolConfig, shard: str = "") -> None:
        self.name = f"{TABLE} {shard}".strip()
        self._before_id = f"{shard}:" if shard else ""
        try:
            self._spool = Spool(config) if (config.path / FILE).exists() else None
        except SpoolUnusable as error:
            raise _Trouble(
                f"the {self.name} of the spool can only be worked on while the service is stopped: {error}"
            ) from error
        if self._spool and self._spool.damaged:
            _complain(f"the spool's file was damaged and set aside as {self._spool.damaged}")

    def letters(self) -> Iterator[Letter]:
        """Yield every letter, oldest first."""
        after = 0
        while self._spool and (some := self._spool.dead_letters(after, _AT_ONCE)):
            for one in some:
                yield Letter(TABLE, f"{self._before_id}{one.id}", *one[1:])
            after = some[-1].id

    def done(self, letters: Sequence[Letter]) -> None:
        """Delete letters that Kafka has acknowledged."""
        for letter in letters:
            if self._spool:
                self._spool.discard_dead_letter(int(letter.id.removeprefix(self._before_id)))

    def close(self) -> None:
        """Let the service have it."""
        if self._spool:
            self._spool.close()


class Topic:
    """The dead letters in the topic; what was sent again is remembered as offsets of a consumer group.

    The committed offset covers all before it; the offsets beyond that, sent again out of turn because only
    some were asked for, stand as ranges in the commit's metadata.
    """

    name = TOPIC

    def __init__(self, config: KafkaConfig, wait: float) -> None:
        self._name = config.topic_dead_letters
        with causes_named():
            self._consumer = KafkaConsumer(
                **config.client_options(),
                group_id=f"{self._name}-resend",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                bootstrap_timeout_ms=_patience_ms(wait),
            )
        numbers = self._consumer.partitions_for_topic(self._name) or ()
        self._parts = [TopicPartition(self._name, number) for number in sorted(numbers)]
        self._resent: dict[TopicPartition, set[int]] = {}
        self._first: dict[TopicPartition, int] = {}

    def letters(self) -> Iterator[Letter]:
        """Yield the letters that were not sent again yet, in offset order within each partition."""
        if not self._parts:
            return
        consumer = self._consumer
        consumer.assign(self._parts)
        beginnings, ends = consumer.beginning_offsets(self._parts), consumer.end_offsets(self._parts)
        for part in self._parts:
            committed = consumer.committed(part, metadata=True)
            known = committed is not None and committed.offset >= beginnings[part]
            self._first[part] = committed.offset if known else beginnings[part]
            self._resent[part] = _unpacked(committed.metadata) if known else set()
            consumer.seek(part, self._first[part])
        quiet_since = time.monotonic()
        while any(consumer.position(part) < ends[part] for part in self._parts):
            for part, records in consumer.poll(timeout_ms=_POLL_MS).items():
                quiet_since = time.monotonic()
                for one in records:
                    if one.offset < ends[part] and one.offset not in self._resent[part]:
                        yield _from_record(one)
            if time.monotonic() - quiet_since > _ANSWER_SECONDS:
                raise _Trouble(f"{self._name}: Kafka gave nothing for {_ANSWER_SECONDS:g} s")

    def done(self, letters: Sequence[Letter]) -> None:
        """Remember letters that Kafka has acknowledged."""
        touched = set()
        for letter in letters:
            number, _, offset = letter.id.partition(":")
            part = TopicPartition(self._name, int(number))
            self._resent[part].add(int(offset))
            touched.add(part)
        commits = {part: self._commit(part) for part in touched}
        if commits:
            self._consumer.commit(commits)

    def _commit(self, part: TopicPartition) -> OffsetAndMetadata:
        resent = self._resent[part]
        while self._first[part] in resent:
            resent.discard(self._first[part])
            self._first[part] += 1
        metadata = _packed(resent)
        if len(metadata) > _REMEMBERED:
            raise _Trouble(f"{self._name}: too many single letters to remember; resend all of them once")
        return OffsetAndMetadata(self._first[part], metadata, -1)

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close(autocommit=False)


def _patience_ms(wait: float) -> int:
    return math.ceil(max(wait, 1.0) * 1000)


def _packed(offsets: set[int]) -> str:
    """Write offsets as ranges: `3-5,9-9`."""
    ranges: list[list[int]] = []
    for offset in sorted(offsets):
        if ranges and offset == ranges[-1][1] + 1:
            ranges[-1][1] = offset
        else:
            ranges.append([offset, offset])
    return ",".join(f"{first}-{last}" for first, last in ranges)


def _unpacked(metadata: str | None) -> set[int]:
    ranges = [part.split("-") for part in (metadata or "").split(",") if part]
    return {offset for first, last in ranges for offset in range(int(first), int(last) + 1)}


def _from_record(one: Any) -> Letter:  # noqa: ANN401 - ConsumerRecord, untyped
    headers = {name: value.decode("utf-8", "replace") for name, value in one.headers}

    def number(name: str) -> int:
        text = headers.get(name, "")
        return int(text if text.removeprefix("-").isdigit() else one.timestamp)

    return Letter(
        TOPIC,
        f"{one.partition}:{one.offset}",
        number("died_ms"),
        headers.get("reason", ""),
        headers.get("error", ""),
        headers.get("topic", ""),
        one.key,
        headers.get("event_type", ""),
        number("timestamp_ms"),
        one.value,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    asked = _command_line(arguments)
    try:
        settings = load_settings()
    except SettingsError as error:
        return refuse(error)
    fine = True
    with ExitStack() as stack:
        for opened in _places(settings, asked):
            fine &= _work_on(opened, settings.kafka, asked, stack)
    return 0 if fine else 1


def _places(settings: Settings, asked: argparse.Namespace) -> Iterator[Callable[[], Table | Topic]]:
    if asked.place in (TABLE, "all"):
        base, *of_shards = spool_folders(settings.spool.path, settings.shard.count)
        if not of_shards or (base / FILE).exists():
            yield partial(_table, settings.spool, base)
        for folder in of_shards:
            yield partial(_table, settings.spool, folder, folder.name)
    if asked.place in (TOPIC, "all"):
        yield partial(Topic, settings.kafka, asked.wait)


def _table(config: SpoolConfig, folder: Path, shard: str = "") -> Table:
    return Table(config.model_copy(update={"path": folder}), shard)


def _work_on(
    opened: Callable[[], Table | Topic], kafka: KafkaConfig, asked: argparse.Namespace, stack: ExitStack
) -> bool:
    """List or send again what lies in one place; return whether all of it could be."""
    try:
        place = opened()
        stack.callback(place.close)
        letters = (one for one in place.letters() if _wanted(one, asked))
        if asked.command == "list":
            for letter in letters:
                _show(letter, as_json=asked.json)
            return True
        return _resend(place, list(letters), kafka, asked)
    except NotConnectedError as error:
        servers = ",".join(kafka.bootstrap_servers)
        _complain(f"no connection to Kafka at {servers}: {error}; check {error.check}")
    except KeyboardInterrupt:
        _complain("stopped before the end; run it again to finish")
    except (_Trouble, SpoolFailed, KafkaError, OSError, ValueError) as error:
        _complain(one_line(error))
    return False


def _resend(place: Table | Topic, letters: list[Letter], kafka: KafkaConfig, asked: argparse.Namespace) -> bool:
    sent, told = 0, True
    if letters:
        with causes_named():
            producer = open_producer(kafka, bootstrap_timeout_ms=_patience_ms(asked.wait))
        try:
            for start in range(0, len(letters), _AT_ONCE):
                taken = _sent(producer, letters[start : start + _AT_ONCE])
                told &= _tell_ledger(producer, kafka.topic_gaps, taken)
                place.done(taken)
                sent += len(taken)
        finally:
            producer.close(timeout=5.0)
    if asked.json:
        print(json.dumps({"place": place.name, "resent": sent, "left": len(letters) - sent}))
    else:
        print(f"{place.name}: {sent} sent again, {len(letters) - sent} left")
    return told and sent == len(letters)


def _sent(producer: KafkaProducer, letters: list[Letter]) -> list[Letter]:
    """Send letters and wait for the answers; return those that Kafka took."""
    futures = []
    for letter in letters:
        try:
            future = producer.send(letter.topic, letter.value, key=letter.key, timestamp_ms=letter.timestamp_ms)
        except (KafkaError, ValueError, AssertionError) as error:
            _complain(f"{letter.place} {letter.id}: {one_line(error)}")
        else:
            futures.append((letter, future))
    taken = []
    for letter, future in futures:
        try:
            future.get(timeout=_ANSWER_SECONDS)
        except KafkaError as error:
            _complain(f"{letter.place} {letter.id}: {letter.topic} did not take it: {one_line(error)}")
        else:
            taken.append(letter)
    return taken


def _tell_ledger(producer: KafkaProducer, topic: str, taken: list[Letter]) -> bool:
    """Write which ids are in their topics now; a ledger that does not take it is no reason to send them twice."""
    notes: list[Note] = []
    Ledger(notes.append, Telemetry()).resent(ids_of(letter.event for letter in taken))
    try:
        futures = [
            producer.send(topic, note.value, key=note.key, timestamp_ms=note.timestamp_ms) for note in notes
        ]
        for future in futures:
            future.get(timeout=_ANSWER_SECONDS)
    except (KafkaError, ValueError, AssertionError) as error:
        _complain(f"sent again, but {topic} did not take the note of it: {one_line(error)}")
        return False
    return True


def _wanted(letter: Letter, asked: argparse.Namespace) -> bool:
    return all(
        not wanted or actual in wanted
        for wanted, actual in ((asked.reason, letter.reason), (asked.topic, letter.topic), (asked.id, letter.id))
    )


def _show(letter: Letter, *, as_json: bool) -> None:
    shown = letter.shown()
    if as_json:
        print(json.dumps(shown), flush=True)
    else:
        print("{place:5}  {id:>8}  {time}  {reason}  {topic}  {key}  {size} bytes".format(**shown), flush=True)


def _complain(line: str) -> None:
    print(f"dead_letters: {line}", file=sys.stderr)


def _command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("command", choices=["list", "resend"])
    parser.add_argument(
        "--place",
        choices=[TABLE, TOPIC, "all"],
        default="all",
        help="where to look (default: all); the table needs the service to be stopped",
    )
    for name in ("reason", "topic", "id"):
        parser.add_argument(f"--{name}", action="append", help=f"only those of this {name}; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--wait",
        type=seconds(0.0, DAY_SECONDS),
        default=10.0,
        metavar="SECONDS",
        help="for the broker (default: 10)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
