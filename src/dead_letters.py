"""From the spool's dead-letter table to the dead-letter topic, beside the data and never in its way."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.kafka_producer import KafkaSink
    from src.spool import Spool

_AT_ONCE = 50


class DeadLetterMail:
    """Offers each dead letter of the table to the topic; deletes it there once the topic acknowledged it.

    What the topic does not take either stays in the table, and is offered again to the next producer. For one
    thread, except for the answers, which come on the producer's I/O thread and are only noted.
    """

    def __init__(self, sink: KafkaSink, spool: Spool) -> None:
        self._sink = sink
        self._spool = spool
        self._answers: deque[tuple[int, bool]] = deque()
        self._under_way: set[int] = set()
        self._offered_up_to = 0
        self._producer: object = None

    def forward(self) -> None:
        """Take note of answers, and offer the next letters when none is under way; never waits for Kafka."""
        while self._answers:
            number, taken = self._answers.popleft()
            self._under_way.discard(number)
            if taken:
                self._spool.discard_dead_letter(number)
        producer = self._sink.dead_letter_producer
        if producer is not self._producer:
            self._producer = producer
            self._offered_up_to = 0
            self._under_way.clear()
        if producer is None or self._under_way or not self._spool.has_dead_letters:
            return
        for letter in self._spool.dead_letters(self._offered_up_to, _AT_ONCE):
            self._under_way.add(letter.id)
            if not self._sink.send_dead_letter(letter, self._answered):
                self._under_way.discard(letter.id)
            self._offered_up_to = letter.id

    def _answered(self, number: int, taken: bool) -> None:  # noqa: FBT001 - the answer
        self._answers.append((number, taken))
