"""Read the service's events from Kafka and show them as they come: an example of a consumer, and a tool.

Joins a consumer group, commits what it has shown, and prints statistics when it ends: by Ctrl+C, SIGTERM,
`--max-messages` or `--seconds`. With `--book` it rebuilds the order book of one symbol from the depth topic alone,
without a group. Exit codes: 0 ended as asked, 1 Kafka was not reached or refused, or with `--once` there is no
book, 2 the configuration or the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kafka.errors import KafkaError

from config.faults import SettingsError
from config.settings import load_settings
from src import book_topic
from src.book_screen import BookScreen
from src.book_topic import NoDepthTopic
from src.commands import DAY_SECONDS, Stop, forget_stdout, names, one_line, positive, refuse, seconds
from src.consumer_reader import NotCommittedError, Reader, connect, topic_names
from src.consumer_screen import Screen
from src.kafka_causes import NotConnectedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.kafka import KafkaConfig

_CLOSE_MS = 1_000
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.001, 365 * DAY_SECONDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    asked = _command_line(arguments)
    try:
        config = load_settings().kafka
    except SettingsError as error:
        return refuse(error)
    servers = ",".join(config.bootstrap_servers)
    try:
        stop = Stop()
        reader = (_book_reader if asked.book else _event_reader)(config, asked, stop)
        stop.interrupts = False
    except KeyboardInterrupt:
        return 0
    except NotConnectedError as error:
        return _fail(f"no connection to Kafka at {servers}: {error}; check {error.check}")
    except NoDepthTopic as error:
        return _fail(one_line(error))
    except (KafkaError, OSError, ValueError) as error:
        return _fail(f"cannot connect to Kafka at {servers}: {one_line(error)}")
    exit_code = _read(reader, [] if asked.book else topic_names(config, asked.topics))
    return exit_code or int(isinstance(reader.view, BookScreen) and asked.once and not reader.view.known)


def _event_reader(config: KafkaConfig, asked: argparse.Namespace, stop: Stop) -> Reader:
    topics = topic_names(config, asked.topics)
    consumer = connect(config, topics, asked.group, from_beginning=asked.from_beginning, wait=asked.wait)
    view = Screen(as_json=asked.json)
    return Reader(consumer, view, stop, asked.symbols, asked.max_messages, asked.seconds)


def _book_reader(config: KafkaConfig, asked: argparse.Namespace, stop: Stop) -> Reader:
    """Return a reader that begins at the last snapshot of the symbol."""
    consumer = book_topic.connect(config, asked.wait)
    view = BookScreen(asked.book, asked.levels, once=asked.once, as_json=asked.json)
    start = book_topic.find_start(config, asked.book, view.remark)
    if start.lacking:
        view.remark(start.lacking if asked.once else f"{start.lacking}; waiting for one")
    consumer.assign([start.partition])
    consumer.seek(start.partition, start.offset)
    ending = book_topic.UpToNow(stop, consumer, start) if asked.once else stop
    return Reader(consumer, view, ending, frozenset({asked.book}), asked.max_messages, asked.seconds)


def _read(reader: Reader, expected: Sequence[str]) -> int:
    """Read to the end; topics that are expected and not there are named."""
    fault = ""
    try:
        if missing := ", ".join(sorted(set(expected) - reader.consumer.topics())):
            reader.view.remark(f"not there yet: {missing} (setup_kafka.py creates topics); waiting")
        reader.run()
        reader.commit()
    except BrokenPipeError:  # what nobody has seen is not committed
        forget_stdout()
    except (KafkaError, NotCommittedError) as error:
        fault = one_line(error)
    finally:
        _end(reader)
    return _fail(fault) if fault else 0


def _end(reader: Reader) -> None:
    reader.consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
    try:
        reader.view.end(reader.statistics)
    except BrokenPipeError:
        forget_stdout()


def _fail(line: str) -> int:
    sys.stderr.write(f"consumer_example: {line}\n")
    return 1


def _command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Show the events that the service writes to Kafka, as they come.",
        epilog="Each line: time of the event (UTC), symbol, type, what it says, and in brackets the time since "
        "the exchange sent it and since the service read it. The KAFKA_* settings name the brokers and topics.",
    )
    time_span = seconds(_SHORTEST_SECONDS, _LONGEST_SECONDS)
    parser.add_argument(
        "--group", default="binance-consumer-example", help="consumer group (default: %(default)s)"
    )
    parser.add_argument(
        "--topics",
        type=names,
        default=["trades", "depth", "raw"],
        help="comma-separated: trades, depth, raw (default: all three), or names of topics",
    )
    parser.add_argument(
        "--symbols",
        type=lambda text: frozenset(name.upper() for name in names(text)),
        default=frozenset(),
        help="comma-separated, any case (default: all)",
    )
    parser.add_argument("--wait", type=time_span, default=10.0, metavar="N", help="for the broker (default: 10 s)")
    parser.add_argument("--from-beginning", action="store_true", help="start with the oldest events")
    parser.add_argument("--max-messages", type=positive, metavar="N", help="end after N events")
    parser.add_argument("--seconds", type=time_span, metavar="N", help="end after N seconds")
    parser.add_argument("--json", action="store_true", help="print the events as JSON lines, statistics to stderr")
    _book_options(parser)
    asked = parser.parse_args(arguments)
    if fault := _contradiction(asked, parser):
        parser.error(fault)
    return asked


def _book_options(parser: argparse.ArgumentParser) -> None:
    book = parser.add_argument_group("order book")
    book.add_argument(
        "--book",
        type=_symbol,
        metavar="SYMBOL",
        help="show the order book of this symbol, rebuilt from the depth topic alone",
    )
    book.add_argument(
        "--levels", type=positive, default=10, metavar="N", help="of each side at most (default: %(default)s)"
    )
    book.add_argument(
        "--once",
        action="store_true",
        help="print the book as it is now, with --json as JSON, and exit (0, or 1: none)",
    )


def _symbol(text: str) -> str:
    found = names(text)
    if len(found) > 1:
        raise argparse.ArgumentTypeError("one symbol")
    return found[0].upper()


def _contradiction(asked: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return what cannot be asked for together, empty when all can."""

    def given(names: Sequence[str]) -> list[str]:
        return [
            f"--{name.replace('_', '-')}" for name in names if getattr(asked, name) != parser.get_default(name)
        ]

    if asked.book is None:
        alone = given(("levels", "once"))
        return f"{', '.join(alone)}: only with --book" if alone else ""
    others = given(("group", "topics", "symbols", "from_beginning"))
    if others:
        return f"{', '.join(others)}: not with --book"
    return "--json with --book: only with --once" if asked.json and not asked.once else ""


if __name__ == "__main__":
    sys.exit(main())
