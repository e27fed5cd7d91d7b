"""Reads the records of a long run while it runs, and has the broker delete what was compared.

Compares as `RunTopics.verdict` does; so a run may be longer than the broker's memory or disk would last.
"""

from __future__ import annotations

import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from benchmarks.topics import READ_SECONDS, RunTopics, Tally

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.loads import Line

DELETE_SECONDS = 2.0
"""Between two deletions; so much is kept at least."""
_PAUSE_SECONDS = 0.2
"""Between two polls, so that each brings many records and little CPU is taken from what is measured."""
_MOST_RECORDS = 20_000
_ENOUGH = {"fetch_min_bytes": 1 << 18, "fetch_max_wait_ms": 500, "max_partition_fetch_bytes": 8 << 20}


class Follower:
    """A thread that keeps up with the records of a run; deletes only what it has read."""

    def __init__(self, topics: RunTopics) -> None:
        self._topics = topics
        self._consumer = topics.open_consumer(**_ENOUGH)
        self._tally = Tally()
        self._expected: int | None = None
        self._fault = ""
        self._closing = threading.Event()
        self.read = 0
        """Records compared so far."""
        self.deleted = 0
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Begin at the first record."""
        self._consumer.seek_to_beginning()
        self._thread.start()

    @property
    def fault(self) -> str:
        """What is wrong already; there is no use in going on then, as nothing is deleted any more."""
        return self._fault or self._tally.fault

    def verdict(self, sent: Mapping[Line, int], records: int) -> str:
        """Wait until so many records are compared with what was sent; empty when all is well."""
        self._expected = records
        self._thread.join()
        return self._fault or self._tally.verdict(sent)

    def close(self) -> None:
        """Give up what is not compared yet."""
        self._closing.set()
        self._thread.join()
        self._consumer.close()

    def _follow(self) -> None:
        try:
            with self._topics.deleting() as delete:
                self._compare(delete)
        except Exception as error:  # noqa: BLE001 - told as the run's fault, whatever it is
            self._fault = f"the records could not be followed: {type(error).__name__}: {error}"

    def _compare(self, delete: Any) -> None:  # noqa: ANN401 - kafka-python has no types
        read_at = deleted_at = time.monotonic()
        while self._expected != self.read and not self._closing.wait(_PAUSE_SECONDS):
            polled = self._consumer.poll(timeout_ms=500, max_records=_MOST_RECORDS)
            now = time.monotonic()
            if polled:
                self._take(polled)
                read_at = now
            elif self._expected is not None and now - read_at > READ_SECONDS:
                raise TimeoutError(f"{self.read} of {self._expected} records came; the rest is unknown")
            if now - deleted_at > DELETE_SECONDS:
                self._delete(delete)
                deleted_at = now

    def _delete(self, delete: Any) -> None:  # noqa: ANN401
        read = {partition: self._consumer.position(partition) for partition in self._topics.partitions}
        with suppress(KafkaError):  # a busy broker did not answer in time; the next call deletes these, too
            delete(read)
            self.deleted = self.read

    def _take(self, polled: Mapping[Any, Any]) -> None:
        for partition, records in polled.items():
            self.read += len(records)
            for record in records:
                self._tally.add(self._topics.identify(partition.topic, record.value))
