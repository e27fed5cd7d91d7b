"""After a restart the service knows where Kafka ends: checkpoint, tail of the topics, what is on disk.

On a real broker, with the parts of the service as one run; the real process under `kill -9` is at the end.
"""

from __future__ import annotations

import gc
import threading
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from kafka.errors import GroupAuthorizationFailedError
from msgspec import structs

from config.settings import SpoolConfig
from src.holes import Position
from src.lost import ids_of
from src.spool import Spool
from tests.broker_fixtures import read_all
from tests.resume_fixtures import (
    Run,
    Truth,
    aggregate,
    bar,
    depth,
    expanded,
    kafka_config,
    now_ms,
    trade,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from config.kafka import KafkaConfig
    from sandbox.brokers import Broker
    from src.checkpoints import Checkpoint
    from src.events import Event
    from src.kafka_reader import KafkaReader
    from tests.broker_fixtures import MakeBroker

    MakeRun = Callable[..., Run]

pytestmark = pytest.mark.kafka
MINUTE = 60_000


@pytest.fixture(autouse=True)
def sockets_of_refused_connections() -> Iterator[None]:
    """Let go here of what kafka-python leaves open when a broker is not there, not in a later test."""
    yield
    gc.collect()


@pytest.fixture
def kafka(broker: Broker) -> KafkaConfig:
    return kafka_config(broker.bootstrap_servers)


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """Make runs on one spool, one after the other; what still runs afterwards is ended."""
    made: list[Run] = []

    def make(kafka: KafkaConfig, **settings: object) -> Run:
        made.append(Run(kafka, tmp_path / "spool", **settings))
        return made[-1]

    yield make
    for run in made:
        run.close()


def test_the_first_run_of_all_finds_nothing_and_says_so(kafka: KafkaConfig, make_run: MakeRun) -> None:
    run = make_run(kafka).start()
    assert run.found == {}


def test_a_last_checkpoint_is_written_at_the_end_and_the_next_run_reads_no_tail(
    kafka: KafkaConfig, make_run: MakeRun
) -> None:
    first = make_run(kafka, interval=600).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 501)])
    first.feed([aggregate("ETHUSDT", 7), depth("BTCUSDT", 1, 5), depth("BTCUSDT", 6, 9)])
    first.close()
    assert first["checkpoints_written"] == 1
    second = make_run(kafka).start()
    assert second.found == {
        "btcusdt@trade": Position("btcusdt@trade", 500),
        "ethusdt@aggTrade": Position("ethusdt@aggTrade", 7),
        "btcusdt@depth@100ms": Position("btcusdt@depth@100ms", 9),
    }
    assert second.resume._records == 0


def test_after_a_kill_the_tail_behind_the_checkpoint_tells_the_rest(kafka: KafkaConfig, make_run: MakeRun) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 1001)])
    first.feed([depth("BTCUSDT", 1, 5)])
    first.checkpointed()
    first.checkpoints._resumed = lambda: False
    first.feed([trade("BTCUSDT", number) for number in range(1001, 1301)])
    first.feed([aggregate("ETHUSDT", number) for number in range(50, 60)])
    first.feed([depth("BTCUSDT", 6, 20)])
    first.delivered()
    first.die()
    second = make_run(kafka).start()
    assert second.found["btcusdt@trade"] == Position("btcusdt@trade", 1300)
    assert second.found["ethusdt@aggTrade"] == Position("ethusdt@aggTrade", 59)
    assert second.found["btcusdt@depth@100ms"] == Position("btcusdt@depth@100ms", 20)
    assert 311 <= second.resume._records < 1312
    assert second.standing.until_ms > 0


def test_a_hole_in_the_tail_is_found_and_one_that_was_filled_later_is_not(
    kafka: KafkaConfig, make_run: MakeRun
) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 11)])
    first.feed([trade("BTCUSDT", 21)])
    first.checkpointed()
    first.checkpoints._resumed = lambda: False
    first.feed([trade("BTCUSDT", number) for number in (11, 12, 13, 22, 40, 41, 30, 31)])
    first.delivered()
    first.die()
    found = make_run(kafka).start().found["btcusdt@trade"]
    assert found == Position("btcusdt@trade", 41, ((14, 20), (23, 29), (32, 39)))
    assert expanded(found) == Truth(kafka).missing("btcusdt@trade")


def test_bars_are_known_by_their_close_time_and_whether_their_last_frame_came(
    kafka: KafkaConfig, make_run: MakeRun
) -> None:
    start = now_ms() // MINUTE * MINUTE - 10 * MINUTE
    first = make_run(kafka).start()
    first.feed([bar("BTCUSDT", start, closed=False), bar("BTCUSDT", start, closed=True)])
    first.feed([bar("ETHUSDT", start, closed=False), bar("BNBUSDT", start, closed=False, interval="1m@+08:00")])
    first.checkpointed()
    first.checkpoints._resumed = lambda: False
    first.feed([bar("BTCUSDT", start + MINUTE, closed=False), bar("ETHUSDT", start + 2 * MINUTE, closed=False)])
    first.delivered()
    first.die()
    found = make_run(kafka).start().found
    btc, eth, bnb = (f"{name}usdt@kline_1m" for name in ("btc", "eth", "bnb"))
    assert found[btc] == Position(btc, start + 2 * MINUTE - 1, (), final=False)
    missing = ((start, start + MINUTE - 1), (start + MINUTE, start + 2 * MINUTE - 1))
    assert found[eth] == Position(eth, start + 3 * MINUTE - 1, missing, final=False)
    assert found[f"{bnb}@+08:00"] == Position(f"{bnb}@+08:00", start + MINUTE - 1, (), final=False)


def test_without_a_checkpoint_the_ends_of_the_topics_are_read(
    kafka: KafkaConfig, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.resume.TAIL_RECORDS", 100)
    first = make_run(kafka, interval=600).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 1001)])
    first.delivered()
    first.die()
    second = make_run(kafka).start()
    assert second.found == {"btcusdt@trade": Position("btcusdt@trade", 1000)}
    assert second.resume._records == 100


def test_a_checkpoint_of_other_topics_says_nothing_of_these(
    broker: Broker, kafka: KafkaConfig, make_run: MakeRun
) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 1001)])
    first.feed([trade("ETHUSDT", 5)])
    first.close()
    anew = kafka_config(broker.bootstrap_servers, checkpoints=False)
    emptied = kafka.model_copy(
        update={f"topic_{each}": getattr(anew, f"topic_{each}") for each in ("trades", "depth", "raw_events")}
    )
    second = make_run(emptied).start()
    assert second.found == {}


def test_copies_in_the_raw_topic_do_not_count_as_the_event_itself(kafka: KafkaConfig, make_run: MakeRun) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", 1)])
    copy = first.decoded([trade("BTCUSDT", 2)])[0]
    copy.route = structs.replace(copy.route, topic=kafka.topic_raw_events)  # as KAFKA_MIRROR_RAW_EVENTS makes them
    first.standing.put([], lambda _: first.delivery.accept([copy]))
    first.delivered()
    first.die()
    assert make_run(kafka).start().found == {"btcusdt@trade": Position("btcusdt@trade", 1)}


def test_a_search_that_takes_too_long_does_not_keep_the_start_waiting(
    own_broker: Broker, make_run: MakeRun
) -> None:
    kafka = kafka_config(own_broker.bootstrap_servers)
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", 1)])
    first.close()
    second = make_run(kafka, timeout=4.0)
    frozen = threading.Event()
    second.resume._kafka_ready = frozen.is_set
    begun = time.monotonic()
    second.start(resumed=False)
    wait_until(lambda: second.sink.ready, "connected")
    own_broker.freeze()
    frozen.set()
    wait_until(lambda: second.resume._reading, "it reads")
    assert not second.resume.may_go_on
    wait_until(lambda: second.resume.may_go_on, "the start goes on")
    assert 3.9 < time.monotonic() - begun < 9.0
    assert not second.resume.done
    own_broker.thaw()
    wait_until(lambda: second.resume.done, "it goes on beside the live data", 40)
    assert second.found == {"btcusdt@trade": Position("btcusdt@trade", 1)}


def test_nothing_is_written_before_the_past_is_known(make_run: MakeRun, kafka: KafkaConfig) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", 10)])
    first.close()
    second = make_run(kafka, interval=0.05)
    second.resume.start = lambda: None  # type: ignore[method-assign]  # it never comes to it
    second.start(resumed=False)
    second.feed([trade("BTCUSDT", 5000)])
    second.delivered()
    wait_until(lambda: second.sink.ready, "connected")
    time.sleep(0.5)  # ten intervals
    second.close()
    assert second["checkpoints_written"] == 0
    found = make_run(kafka).start().found["btcusdt@trade"]
    assert found == Position("btcusdt@trade", 5000, ((11, 4999),))


def test_what_kafka_holds_already_is_taken_off_the_disk_and_the_rest_is_sent_once(
    kafka: KafkaConfig, make_run: MakeRun, tmp_path: Path
) -> None:
    first = make_run(kafka, interval=600).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 101)])
    sent = first.feed([trade("BTCUSDT", number) for number in range(101, 301)])
    sent += first.feed([depth("ETHUSDT", 1, 5), bar("BNBUSDT", now_ms() // MINUTE * MINUTE, closed=False)])
    first.delivered()
    first.die()
    unsent = first.decoded([trade("BTCUSDT", number) for number in range(301, 401)])
    # As after a kill before the acknowledgements were taken note of, 50 of the others on their way:
    left_on_disk(tmp_path / "spool", [*sent, *unsent], sent_up_to=252)
    second = make_run(kafka).start()
    assert second.found["btcusdt@trade"] == Position("btcusdt@trade", 400)
    second.delivered()
    assert second["messages_already_delivered"] == 202
    assert second["messages_recovered"] == 302
    assert second["kafka_produced"] == 100
    assert second["possible_duplicates"] == 50
    second.close()
    truth = Truth(kafka)
    assert truth.ids["btcusdt@trade"] == list(range(1, 401))
    assert len(truth.values) == len(set(truth.values)) == 402


class Hopeless:
    """Lets a run's search fail until it gives up; what comes next waits for `go_on`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._checkpoint = run.resume._checkpoint
        self._tries = 0
        self._going_on = threading.Event()
        run.resume._checkpoint = self._fail_or_wait  # type: ignore[method-assign]
        run.delivery.release = lambda: None  # type: ignore[method-assign]  # not before the disk was looked at

    def _fail_or_wait(self, reader: KafkaReader) -> Checkpoint:
        self._tries += 1
        if self._tries <= 3:
            raise GroupAuthorizationFailedError
        assert self._going_on.wait(20)
        return self._checkpoint(reader)

    def given_up(self) -> None:
        wait_until(lambda: self._tries > 3, "given up, and tried again")

    def go_on(self) -> None:
        self._going_on.set()


def test_after_giving_up_what_this_run_sends_from_disk_is_not_taken_for_that_of_an_earlier_one(
    kafka: KafkaConfig, make_run: MakeRun, tmp_path: Path
) -> None:
    first = make_run(kafka, interval=600).start()
    sent = first.feed([trade("BTCUSDT", number) for number in range(1, 101)])
    first.delivered()
    first.die()
    unsent = first.decoded([trade("BTCUSDT", number) for number in range(101, 401)])
    left_on_disk(tmp_path / "spool", [*sent[50:], *unsent], sent_up_to=50)
    second = make_run(kafka)
    hopeless = Hopeless(second)
    second.delivery._forget_acknowledged = lambda: None  # type: ignore[method-assign]  # the disk is slow
    second.start(resumed=False)
    hopeless.given_up()
    assert second.delivery._on_disk.clear() == ids_of([*sent[50:], *unsent])
    del second.delivery.release
    second.delivery.release()
    wait_until(lambda: second["kafka_produced"] == 350, "all of it is sent")
    hopeless.go_on()
    wait_until(lambda: second.resume.done, "resumed")
    del second.delivery._forget_acknowledged
    second.delivered()
    assert second.found == {"btcusdt@trade": Position("btcusdt@trade", 400)}
    second.close()
    assert second["messages_spooled"] == second["messages_already_delivered"] == 0
    assert second["possible_duplicates"] == 50
    assert not second.telemetry.undelivered()
    assert Truth(kafka).missing("btcusdt@trade") == set()


def test_after_giving_up_what_is_sent_from_disk_while_the_topics_are_read_is_found(
    kafka: KafkaConfig, make_run: MakeRun, tmp_path: Path
) -> None:
    first = make_run(kafka, interval=600).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 101)])
    first.close()
    left_on_disk(
        tmp_path / "spool",
        first.decoded([trade("BTCUSDT", number) for number in [*range(101, 201), *range(251, 401)]]),
    )
    second = make_run(kafka)
    hopeless = Hopeless(second)
    read_tail = second.resume._read_tail

    def then_everything_is_sent(*args: Any) -> Any:
        ends = read_tail(*args)
        second.resume._read_tail = read_tail  # type: ignore[method-assign]
        del second.delivery.release
        second.delivery.release()
        second.delivered()
        return ends

    second.resume._read_tail = then_everything_is_sent  # type: ignore[method-assign]
    second.start(resumed=False)
    hopeless.go_on()
    wait_until(lambda: second.resume.done, "resumed")
    assert second.found == {"btcusdt@trade": Position("btcusdt@trade", 400, ((201, 250),))}


def left_on_disk(folder: Path, events: list[Event], sent_up_to: int = 0) -> None:
    with closing(Spool(SpoolConfig(path=folder, min_free_bytes=0))) as spool:
        spool.append(numbered(events))
        spool.sending(sent_up_to)


def numbered(events: list[Event]) -> list[Event]:
    for number, event in enumerate(events, 1):
        event.seq = number
    return events


def test_without_a_broker_the_start_waits_two_seconds_and_the_positions_come_later(
    own_broker_factory: MakeBroker, make_run: MakeRun
) -> None:
    own = own_broker_factory()
    own.start()
    kafka = kafka_config(own.bootstrap_servers)
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 101)])
    first.close()
    own.stop()
    second = make_run(kafka)
    begun = time.monotonic()
    second.start(resumed=False)
    wait_until(lambda: second.resume.may_go_on, "the start goes on")
    assert 1.9 < time.monotonic() - begun < 3.9
    second.feed([trade("BTCUSDT", number) for number in range(151, 201)])
    own.start()
    wait_until(lambda: second.resume.done, "resumed late", 30)
    assert second.found["btcusdt@trade"].last >= 100
    second.delivered()
    second.checkpointed()
    second.close()
    found = make_run(kafka).start().found["btcusdt@trade"]
    assert found == Position("btcusdt@trade", 200, ((101, 150),))


def test_while_something_is_unacknowledged_no_checkpoint_claims_it(own_broker: Broker, make_run: MakeRun) -> None:
    kafka = kafka_config(own_broker.bootstrap_servers)
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 101)])
    first.checkpointed()
    own_broker.freeze()
    written = first["checkpoints_written"]
    first.feed([trade("BTCUSDT", number) for number in range(101, 201)])
    time.sleep(1.5)  # seven intervals
    assert first["checkpoints_written"] <= written + 1
    assert first.delivery.settled_up_to() <= 100
    own_broker.thaw()
    first.delivered()
    first.checkpointed()
    assert first.delivery.settled_up_to() == 200
    records = read_all(own_broker.bootstrap_servers, kafka.topic_checkpoints)
    assert any(one.key == b"btcusdt@trade" and b'"last":200' in (one.value or b"") for one in records)


def test_what_is_lost_while_a_checkpoint_waits_is_missing_in_it(kafka: KafkaConfig, make_run: MakeRun) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(1, 101)])
    first.delivered()
    first.checkpointed()
    first.lost.note(ids_of(first.decoded([trade("BTCUSDT", number) for number in (41, 42, 101)])))
    first.checkpointed()
    first.die()
    assert make_run(kafka).start().found == {"btcusdt@trade": Position("btcusdt@trade", 100, ((41, 42),))}


def test_a_new_numbering_and_a_kill_before_the_next_checkpoint(kafka: KafkaConfig, make_run: MakeRun) -> None:
    first = make_run(kafka).start()
    first.feed([trade("BTCUSDT", number) for number in range(999_901, 1_000_001)])
    first.delivered()
    first.checkpointed()
    first.checkpoints._resumed = lambda: False
    last = now_ms()
    wait_until(lambda: now_ms() > last, "a millisecond later")
    first.feed([trade("BTCUSDT", number) for number in range(1, 51)])
    first.delivered()
    first.die()
    assert make_run(kafka).start().found == {"btcusdt@trade": Position("btcusdt@trade", 50)}


@pytest.fixture
def shard_of(kafka: KafkaConfig, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Start shards, each with a spool of its own and the streams of one symbol."""
    with ExitStack() as stack:

        def start(shard: str, symbol: str, **more: float) -> Run:
            folder = tmp_path / shard.replace("/", "-")
            run = Run(kafka, folder, shard=shard, ours=lambda stream: stream.startswith(symbol), **more)
            stack.callback(run.close)
            return run.start()

        yield start


def fed(run: Run, symbol: str, first: int, last: int) -> Run:
    run.feed([trade(symbol, number) for number in range(first, last + 1)])
    run.delivered()
    run.checkpointed()
    return run


def test_another_number_of_shards_reads_no_more_of_the_topics_than_its_own_streams_need(
    shard_of: Callable[..., Run],
) -> None:
    fed(shard_of("0/2", "btcusdt"), "BTCUSDT", 1, 1).die()
    fed(shard_of("1/2", "ethusdt"), "ETHUSDT", 1, 500).die()
    one = shard_of("2/3", "ethusdt")
    assert one.resume._records == 0, "where the other one stopped long ago is not its affair"
    assert one.found == {"ethusdt@trade": Position("ethusdt@trade", 500)}
    other = shard_of("1/3", "btcusdt")
    assert other.resume._records >= 500
    assert other.found == {"btcusdt@trade": Position("btcusdt@trade", 1)}


def test_a_shard_that_starts_writes_nothing_over_what_another_one_has_written_since(
    shard_of: Callable[..., Run],
) -> None:
    running = fed(shard_of("1/2", "ethusdt"), "ETHUSDT", 1, 500)
    started = shard_of("0/2", "btcusdt", interval=2.0)
    fed(running, "ETHUSDT", 501, 600).die()
    started.checkpointed(1)
    started.die()
    assert shard_of("0/1", "").found == {"ethusdt@trade": Position("ethusdt@trade", 600)}
