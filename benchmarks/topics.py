"""The topics of one run: how many records they hold, and whether exactly what was sent is in them, in order."""

from __future__ import annotations

import uuid
import warnings
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.loads import SYMBOLS, UPDATES, Line

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaConsumer, TopicPartition
    from kafka.admin import KafkaAdminClient, NewTopic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Identify = Callable[[bytes], tuple[Line, int] | None]
    """Tells kind, symbol and id of a record's value; None for a record that belongs to no frame."""

PARTITIONS = 3  # the default of KAFKA_PARTITIONS
READ_SECONDS = 20
PEER_KINDS = {"trades": "aggTrade", "book": "depth", "candles": "kline", "ticker": "bookTicker"}
"""What cryptofeed calls the kinds of a load."""


class _Candle(msgspec.Struct):
    n: int


class _Record(msgspec.Struct):
    """A record of the service or of the naive reference; the four fields that are added are required."""

    s: str
    ingestion_timestamp: int
    source: str
    event_type: str
    pipeline_version: str


class _Trade(_Record, kw_only=True):
    a: int = 0
    t: int = 0


class _Depth(_Record, kw_only=True):
    s: str = ""
    U: int = 0
    u: int = 0


class _Raw(_Record, kw_only=True):
    u: int = 0
    n: int = 0
    k: _Candle | None = None


class _Delta(msgspec.Struct):
    bid: list[tuple[float, float]]


class _PeerRecord(msgspec.Struct):
    symbol: str
    id: str = "0"
    delta: _Delta | None = None
    trades: int = 0
    bid: float = 0.0


_decode_trade = msgspec.json.Decoder(_Trade).decode
_decode_depth = msgspec.json.Decoder(_Depth).decode
_decode_raw = msgspec.json.Decoder(_Raw).decode
_decode_peer = msgspec.json.Decoder(_PeerRecord).decode


def identify_trade(value: bytes) -> tuple[Line, int]:
    """Tell an aggTrade or trade."""
    record = _decode_trade(value)
    if record.event_type == "aggregate_trade":
        return ("aggTrade", record.s), record.a
    return ("trade", record.s), record.t


def identify_depth(value: bytes) -> tuple[Line, int] | None:
    """Tell a depth update, whose range of ids must be whole; None for the snapshot of a book."""
    record = _decode_depth(value)
    if not record.u:
        return None
    whole = record.u % UPDATES == 0 and record.u - record.U == UPDATES - 1
    return ("depth", record.s), record.u // UPDATES if whole else -1


def identify_raw(value: bytes) -> tuple[Line, int]:
    """Tell a kline, ticker or bookTicker."""
    record = _decode_raw(value)
    if record.k is not None:
        return ("kline", record.s), record.k.n
    return (("ticker", record.s), record.n) if record.n else (("bookTicker", record.s), record.u)


def identify_peer(kind: str) -> Identify:
    """Return what tells the peer's records of one kind; a book that is no update is a snapshot of its own."""

    def identify(value: bytes) -> tuple[Line, int] | None:
        record = _decode_peer(value)
        number = {
            "trades": int(record.id),
            "book": int(record.delta.bid[0][1]) if record.delta else 0,
            "candles": record.trades,
            "ticker": int(record.bid),
        }[kind]
        if kind == "book" and record.delta is None:
            return None
        return (PEER_KINDS[kind], record.symbol.replace("-", "")), number

    return identify


class Tally:
    """Compares what is read with what was sent: of each line, ids 1, 2, 3, ... without a gap, none twice."""

    def __init__(self) -> None:
        self._last: dict[Line, int] = defaultdict(int)
        self.fault = ""
        self.strangers = 0

    def add(self, identified: tuple[Line, int] | None) -> None:
        """Take the next record of a partition."""
        if identified is None:
            self.strangers += 1
            return
        line, number = identified
        if number != self._last[line] + 1 and not self.fault:
            self.fault = f"{line}: {number} came after {self._last[line]}"
        self._last[line] = number

    def verdict(self, sent: Mapping[Line, int]) -> str:
        """Return the first fault, or an empty text when everything sent is there once and in order."""
        if self.fault:
            return self.fault
        for line, number in sent.items():
            if self._last[line] != number:
                return f"{line}: {self._last[line]} of {number} are there"
        extra = set(self._last) - set(sent)
        return f"never sent: {extra}" if extra else ""


class UnreadableError(Exception):
    """The broker gave no records for a long time, although it says that there are more."""


class RunTopics:
    """Fresh topics for one run, deleted at its end."""

    def __init__(self, bootstrap_servers: str, *, peer: bool) -> None:
        self.tag = f"bench{uuid.uuid4().hex[:8]}"
        self._bootstrap_servers = bootstrap_servers
        self._identified_by = dict(self._peer_topics() if peer else self._own_topics())
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
        admin.create_topics(
            [NewTopic(name, num_partitions=PARTITIONS, replication_factor=1) for name in self._identified_by]
        )
        admin.close()
        self.partitions = [TopicPartition(name, n) for name in self._identified_by for n in range(PARTITIONS)]
        self._consumer = self.open_consumer()

    def _own_topics(self) -> Iterator[tuple[str, Identify]]:
        yield f"{self.tag}-trades", identify_trade
        yield f"{self.tag}-depth", identify_depth
        yield f"{self.tag}-raw", identify_raw

    def _peer_topics(self) -> Iterator[tuple[str, Identify]]:
        for kind in PEER_KINDS:
            for symbol in SYMBOLS:
                yield f"{self.tag}{kind}-BINANCE-{symbol[:-4]}-{symbol[-4:]}", identify_peer(kind)

    def variables(self) -> dict[str, str]:
        """Return the settings that name them."""
        names = {"KAFKA_TOPIC_TRADES": "trades", "KAFKA_TOPIC_DEPTH": "depth", "KAFKA_TOPIC_RAW_EVENTS": "raw"}
        return {variable: f"{self.tag}-{name}" for variable, name in names.items()}

    def identify(self, topic: str, value: bytes) -> tuple[Line, int] | None:
        """Tell kind, symbol and id of a record; None for one that belongs to no frame."""
        return self._identified_by[topic](value)

    def open_consumer(self, **settings: int) -> Any:  # noqa: ANN401 - kafka-python has no types
        """Return a consumer of all partitions; the caller closes it."""
        consumer = KafkaConsumer(
            bootstrap_servers=self._bootstrap_servers,
            # The embedded broker's answers are larger than asked for; the library would give up at 100 MB.
            receive_message_max_bytes=2**31 - 1,
            **settings,
        )
        consumer.assign(self.partitions)
        return consumer

    def count(self) -> int:
        """Return how many records are there, acknowledged ones only (up to the high watermark)."""
        return sum(self._consumer.end_offsets(self.partitions).values())

    def verdict(self, sent: Mapping[Line, int]) -> str:
        """Read every record from the start and compare with what was sent; empty when all is well."""
        tally = Tally()
        self._consumer.seek_to_beginning()
        try:
            for name, value in self._all(self.count()):
                tally.add(self.identify(name, value))
        except UnreadableError as error:
            return str(error)
        return tally.verdict(sent)

    def _all(self, expected: int) -> Iterator[tuple[str, bytes]]:
        read = 0
        while read < expected:
            polled = self._consumer.poll(timeout_ms=READ_SECONDS * 1000, max_records=50_000)
            if not polled:
                raise UnreadableError(
                    f"{read} of {expected} records could be read back in time; the rest is unknown"
                )
            for partition, records in polled.items():
                read += len(records)
                for record in records:
                    yield partition.topic, record.value

    @contextmanager
    def deleting(self) -> Iterator[Callable[[dict[Any, int]], Any]]:
        """Give what deletes the records of partitions that are below an offset."""
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap_servers)
        try:
            yield admin.delete_records
        finally:
            admin.close()

    def close(self) -> None:
        """Delete the topics, so that the next run finds the broker as this one did."""
        self._consumer.close()
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap_servers)
        admin.delete_topics(list(self._identified_by))
        admin.close()
