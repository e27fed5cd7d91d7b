"""What Kafka does not take as it is: into a topic or a table, and from there back to where it belongs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from config.kafka import KafkaConfig
from config.settings import SpoolConfig
from dead_letters import _packed, _unpacked, main
from sandbox.brokers import free_port
from src.completeness_report import CompletenessReport
from src.events import Event, Route
from src.ledger import Ledger
from src.spool import Spool
from tests.broker_fixtures import create_topics, read_all
from tests.test_kafka_producer import Rig, wait_until
from tests.test_ledger import SCHEMA as LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.brokers import Broker

    Deliver = Callable[..., Rig]

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[1]
NOW = int(time.time() * 1000) - 3_600_000
SMALL = {"max.message.bytes": "2000"}
LARGE = os.urandom(5_000)  # so that no compression makes it small enough


@dataclass(frozen=True)
class Place:
    """Where a test's letters are: topics of its own, and a spool of its own."""

    servers: str
    trades: str
    other: str
    dead: str
    folder: Path

    def config(self) -> KafkaConfig:
        return KafkaConfig(
            bootstrap_servers=(self.servers,),
            topic_trades=self.trades,
            topic_depth=self.other,
            topic_raw_events=self.other,
            topic_dead_letters=self.dead,
        )

    def spool(self) -> Spool:
        return Spool(SpoolConfig(path=self.folder, min_free_bytes=0))

    def dead_letters_in_topic(self) -> list[Any]:
        consumer = KafkaConsumer(bootstrap_servers=self.servers, group_id=None)
        parts = [TopicPartition(self.dead, number) for number in consumer.partitions_for_topic(self.dead) or ()]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends = consumer.end_offsets(parts)
        found = []
        while any(consumer.position(part) < ends[part] for part in parts):
            found += [one for some in consumer.poll(timeout_ms=200).values() for one in some]
        consumer.close(autocommit=False)
        return found

    def values(self, topic: str) -> list[bytes | None]:
        return [one.value for one in read_all(self.servers, topic)]

    def allow_large(self) -> None:
        resource = ConfigResource(ConfigResourceType.TOPIC, self.trades, {"max.message.bytes": "1000000"})
        with KafkaAdminClient(bootstrap_servers=self.servers) as admin:
            admin.alter_configs([resource])


@pytest.fixture
def place(broker: Broker, tmp_path: Path) -> Place:
    """Make a trades topic that takes only small records; the dead-letter topic is not there yet."""
    unique = uuid.uuid4().hex[:12]
    made = Place(
        broker.bootstrap_servers, f"trades-{unique}", f"other-{unique}", f"dead-{unique}", tmp_path / "spool"
    )
    create_topics(made.servers, [made.trades], configs=SMALL)
    create_topics(made.servers, [made.other])
    return made


@pytest.fixture
def deliver(place: Place) -> Iterator[Deliver]:
    """Start a delivery at the place; it is closed afterwards."""
    rigs: list[Rig] = []

    def start() -> Rig:
        rigs.append(Rig(place.config(), place.folder))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close(5.0)


def trade(place: Place, value: bytes, key: bytes = b"BTCUSDT") -> Event:
    return Event(Route("trade", place.trades, key, b"", 0, b""), value, NOW)


class Ran(NamedTuple):
    exit_code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(place: Place, *arguments: str, **more: str) -> Ran:
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": place.servers,
        "KAFKA_TOPIC_TRADES": place.trades,
        "KAFKA_TOPIC_DEPTH": place.other,
        "KAFKA_TOPIC_RAW_EVENTS": place.other,
        "KAFKA_TOPIC_DEAD_LETTERS": place.dead,
        "SPOOL_PATH": str(place.folder),
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "dead_letters.py"), *arguments],
        cwd=ROOT / "tests",  # where no .env of the user is
        env=plain | environment | more,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_record_too_large_goes_to_its_topic_with_all_that_is_known_and_the_data_flows(
    place: Place, deliver: Deliver
) -> None:
    rig = deliver()
    rig.start()
    rig.send([trade(place, b"before"), trade(place, LARGE), trade(place, b"after")])
    wait_until(lambda: rig.count("kafka_produced") == 2)
    wait_until(lambda: len(place.dead_letters_in_topic()) == 1)
    (one,) = place.dead_letters_in_topic()
    assert (one.key, one.value) == (b"BTCUSDT", LARGE)
    told = {name: value.decode() for name, value in one.headers}
    assert told.keys() == {"reason", "error", "topic", "event_type", "timestamp_ms", "died_ms"}
    assert (told["reason"], told["topic"], told["event_type"]) == (
        "MessageSizeTooLargeError",
        place.trades,
        "trade",
    )
    assert told["timestamp_ms"] == str(NOW)
    assert one.timestamp == int(told["died_ms"]) > NOW
    wait_until(lambda: not rig.spool.dead_letters())
    rig.assert_all_accounted_for()
    assert rig.count("messages_dead_lettered") == 1
    assert place.values(place.trades) == [b"before", b"after"]


def test_what_the_topic_does_not_take_either_stays_in_the_table(place: Place, deliver: Deliver) -> None:
    create_topics(place.servers, [place.dead], configs=SMALL)
    rig = deliver()
    rig.start()
    rig.send([trade(place, LARGE), trade(place, b"after")])
    wait_until(lambda: rig.count("kafka_produced") == 1)
    time.sleep(1.0)  # time for it to be offered to the topic, and refused
    rig.send([trade(place, b"later")])
    wait_until(lambda: rig.count("kafka_produced") == 2)
    assert [letter.value for letter in rig.spool.dead_letters()] == [LARGE]
    assert place.dead_letters_in_topic() == []


def test_a_topic_that_cannot_be_created_does_not_hold_up_the_data(place: Place, deliver: Deliver) -> None:
    rig = deliver()
    wanted = rig.sink._aside._wanted
    wanted[place.dead] = replace(wanted[place.dead], replication_factor=9)
    rig.start()
    rig.send([trade(place, LARGE), trade(place, b"after")])
    wait_until(lambda: rig.count("kafka_produced") == 1)
    assert rig.sink.dead_letter_producer is None
    wait_until(lambda: len(rig.spool.dead_letters()) == 1)


def test_what_an_earlier_run_left_in_the_table_is_sent_by_the_next(place: Place, deliver: Deliver) -> None:
    spool = place.spool()
    letters = [trade(place, b"%d" % number) for number in range(120)]
    spool.bury(letters, "InvalidTimestampError", "too far ahead")
    spool.close()
    rig = deliver()
    rig.start()
    wait_until(lambda: not rig.spool.dead_letters())
    assert sorted(one.value for one in place.dead_letters_in_topic()) == sorted(one.value for one in letters)


def test_letters_of_table_and_topic_are_listed_and_sent_again_once(place: Place, deliver: Deliver) -> None:
    rig = deliver()
    rig.start()
    rig.send([trade(place, LARGE)])
    wait_until(lambda: len(place.dead_letters_in_topic()) == 1)
    wait_until(lambda: not rig.spool.dead_letters())
    locked = run(place, "list", "--json")
    assert locked.exit_code == 1
    assert "the table of the spool can only be worked on while the service is stopped" in locked.err
    assert [one["place"] for one in locked.lines] == ["topic"]
    rig.close(5.0)
    spool = place.spool()
    spool.bury([trade(place, LARGE[::-1], b"ETHUSDT")], "MessageSizeTooLargeError", "too large")
    spool.close()

    listed = run(place, "list", "--json")
    assert (listed.exit_code, listed.err) == (0, "")
    assert [(one["place"], one["key"], one["size"]) for one in listed.lines] == [
        ("table", "ETHUSDT", 5_000),
        ("topic", "BTCUSDT", 5_000),
    ]
    assert {one["reason"] for one in listed.lines} == {"MessageSizeTooLargeError"}
    assert f"{place.trades}  BTCUSDT  5000 bytes" in run(place, "list").out

    still = run(place, "resend")
    assert still.exit_code == 1
    assert still.err.count("did not take it") == 2
    assert len(run(place, "list", "--json").lines) == 2

    place.allow_large()
    sent = run(place, "resend", "--json")
    assert (sent.exit_code, sent.err) == (0, "")
    assert sent.lines == [{"place": "table", "resent": 1, "left": 0}, {"place": "topic", "resent": 1, "left": 0}]
    records = read_all(place.servers, place.trades)
    assert sorted((one.key, one.value, one.timestamp) for one in records) == [
        (b"BTCUSDT", LARGE, NOW),
        (b"ETHUSDT", LARGE[::-1], NOW),
    ]
    assert run(place, "list") == (0, "", "")
    assert run(place, "resend").out == "table: 0 sent again, 0 left\ntopic: 0 sent again, 0 left\n"


def test_what_was_sent_again_is_told_to_the_ledger_and_a_ledger_that_is_not_there_stops_nothing(
    place: Place, deliver: Deliver
) -> None:
    gaps = place.trades.replace("trades", "gaps")
    large = [
        b'{"s":"BTCUSDT","t":%d,"x":"%s"}' % (number, os.urandom(2_000).hex().encode()) for number in (7, 8, 9)
    ]
    rig = deliver()
    report = CompletenessReport()
    ledger = Ledger(lambda note: report.add(json.loads(note.value)), rig.telemetry)
    rig.telemetry.tell_dropped = ledger.dropped
    rig.start()
    rig.send([trade(place, value) for value in large])
    wait_until(lambda: len(place.dead_letters_in_topic()) == 3)
    wait_until(lambda: not rig.spool.dead_letters())
    rig.close(5.0)
    assert report.streams["btcusdt@trade"].dead_letters == [(7, 9)]

    place.allow_large()
    *_, one = (each["id"] for each in run(place, "list", "--json").lines)
    without = run(place, "resend", "--place", "topic", "--id", one, KAFKA_TOPIC_GAPS=gaps)
    assert (without.exit_code, without.out) == (1, "topic: 1 sent again, 0 left\n")
    assert without.err.startswith(f"dead_letters: sent again, but {gaps} did not take the note of it: ")
    create_topics(place.servers, [gaps])
    assert run(place, "resend", KAFKA_TOPIC_GAPS=gaps).err == ""
    assert sorted(place.values(place.trades)) == sorted(large)
    (told,) = read_all(place.servers, gaps)
    assert told.key == b"BTCUSDT"
    Draft202012Validator(LEDGER).validate(json.loads(told.value))
    report.add(json.loads(told.value))
    (left,) = report.streams["btcusdt@trade"].dead_letters
    assert left[0] == left[1], "the one that the ledger was not told of"


def test_selected_letters_are_sent_and_the_others_are_kept(place: Place, deliver: Deliver) -> None:
    spool = place.spool()
    spool.bury([trade(place, b"%d" % number) for number in range(5)], "PolicyViolationError", "no")
    spool.close()
    rig = deliver()
    rig.start()
    wait_until(lambda: not rig.spool.dead_letters())
    rig.close(5.0)
    ids = [one["id"] for one in run(place, "list", "--json").lines]
    assert len(ids) == 5
    assert run(place, "resend", "--id", ids[1], "--id", ids[3]).exit_code == 0
    assert [one["id"] for one in run(place, "list", "--json").lines] == [ids[0], ids[2], ids[4]]
    assert run(place, "list", "--reason", "Another", "--json").lines == []
    assert run(place, "resend", "--topic", place.trades).exit_code == 0
    assert run(place, "list", "--json").lines == []
    assert sorted(place.values(place.trades)) == [b"0", b"1", b"2", b"3", b"4"]


def test_the_tables_of_all_shards_are_listed_and_sent_again(place: Place) -> None:
    base = place.folder
    for name in ("", "shard-0", "shard-1"):
        spool = replace(place, folder=base / name).spool()
        spool.bury([trade(place, f"of {name}".encode())], "PolicyViolationError", "no")
        spool.close()
    running = replace(place, folder=base / "shard-0").spool()
    sharded = {"SHARD_COUNT": "2", "SHARD_INDEX": "0"}
    listed = run(place, "list", "--json", **sharded)
    assert listed.exit_code == 1
    assert "the table shard-0 of the spool can only be worked on while the service is stopped" in listed.err
    assert [(one["place"], one["id"]) for one in listed.lines] == [("table", "1"), ("table", "shard-1:1")]
    running.close()
    assert run(place, "list").out == run(place, "list", **sharded).out
    one = run(place, "resend", "--id", "shard-1:1", "--place", "table", "--json", **sharded)
    assert [(line["place"], line["resent"]) for line in one.lines] == [
        ("table", 0),
        ("table shard-0", 0),
        ("table shard-1", 1),
    ]
    assert run(place, "resend", "--place", "table").exit_code == 0
    assert sorted(place.values(place.trades)) == [b"of ", b"of shard-0", b"of shard-1"]


def test_no_broker_is_one_clear_line(place: Place) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    ran = run(place, "list", "--wait", "1", KAFKA_BOOTSTRAP_SERVERS=nowhere)
    said = f"dead_letters: no connection to Kafka at {nowhere}: connection refused; check KAFKA_BOOTSTRAP"
    assert (ran.exit_code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert ran.err.startswith(said)
    assert not place.folder.exists(), "looking makes no spool"


def test_sending_again_waits_for_a_broker_as_long_as_it_is_told(place: Place) -> None:
    spool = place.spool()
    spool.bury([trade(place, b"1")], "PolicyViolationError", "no")
    spool.close()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        nowhere = f"127.0.0.1:{deaf.getsockname()[1]}"
        ran = run(place, "resend", "--place", "table", "--wait", "7", KAFKA_BOOTSTRAP_SERVERS=nowhere)
    assert time.monotonic() - started >= 7
    assert (ran.exit_code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert ran.err.startswith(f"dead_letters: no connection to Kafka at {nowhere}: ")


def test_a_wrong_configuration_or_command_line_ends_with_2(place: Place) -> None:
    ran = run(place, "list", KAFKA_TOPIC_DEAD_LETTERS=place.trades)
    assert ran.exit_code == 2
    assert ran.err.startswith("KAFKA_TOPIC_DEAD_LETTERS=")
    with pytest.raises(SystemExit) as ended:
        main(["bury"])
    assert ended.value.code == 2


@pytest.mark.parametrize("offsets", [set(), {0}, {3, 4, 5, 9}, set(range(1_000))])
def test_remembered_offsets_are_read_back(offsets: set[int]) -> None:
    assert _unpacked(_packed(offsets)) == offsets
