"""`consumer_example.py --book` as the process that a user starts, and what it draws."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from consumer_example import main
from src.book_picture import BookPicture
from src.order_book import OrderBook
from tests.broker_fixtures import Topics, create_topics, read_all
from tests.test_consumer_example import LIMIT, as_json, run, send, started
from tests.test_order_book import NOW, book, snapshot, update

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.brokers import Broker
    from sandbox.exchange import Exchange
    from tests.service_fixtures import StartService


def told(topics: Topics, *arguments: str) -> dict[str, Any]:
    """Run it once and return the book as JSON."""
    code, out, err = run(topics, "--book=btcusdt", "--once", "--json", *arguments)
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def put(topics: Topics, *events: dict[str, Any] | bytes, key: bytes = b"BTCUSDT") -> None:
    values = [event if isinstance(event, bytes) else as_json(event) for event in events]
    send(topics, topics.depth, *values, key=key)


# Against a broker


@pytest.mark.kafka
def test_the_book_is_rebuilt_from_its_last_snapshot(topics: Topics) -> None:
    put(
        topics,
        snapshot(1),
        update(2, 3),
        snapshot(50, [["7", "1"]], [["8", "2"]]),
        update(50, 52, b=[["7.5", "3"]]),
    )
    put(topics, snapshot(900), key=b"ETHUSDT")
    answer = told(topics)
    assert (answer["symbol"], answer["state"], answer["lastUpdateId"], answer["crossed"]) == (
        "BTCUSDT",
        "live",
        52,
        0,
    )
    assert answer["bids"] == [["7.5", "3"], ["7", "1"]]
    assert answer["asks"] == [["8", "2"]]
    assert told(topics, "--levels=1")["bids"] == [["7.5", "3"]]


@pytest.mark.kafka
def test_a_snapshot_deep_in_the_topic_is_found_and_one_that_is_older_than_its_place_is_of_use(
    topics: Topics,
) -> None:
    put(topics, update(5, 6, b=[["9", "5"]]), update(7, 9), snapshot(5))  # the snapshot came late
    numbers = range(10, 45_010)
    send(topics, topics.depth, *(as_json(update(number, number)) for number in numbers))
    code, out, err = run(topics, "--book=BTCUSDT", "--once", "--json")
    assert code == 0
    assert "no snapshot of BTCUSDT in the last 20,000 records" in err
    answer = json.loads(out)
    assert (answer["state"], answer["lastUpdateId"], answer["updates"]) == ("live", 45_009, 45_002)
    assert answer["bids"] == [["10", "1"], ["9", "5"]]


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "there is no depth of BTCUSDT in the last 0 records"),
        ([update(1, 2)], "there is depth of BTCUSDT but no snapshot in the last 1 records"),
        ([snapshot(1), update(9, 9)], "no book of BTCUSDT: broken since a gap"),
    ],
)
def test_a_book_that_cannot_be_known_is_said_with_why_and_exit_code_1(
    events: list[dict[str, Any]], said: str, topics: Topics
) -> None:
    put(topics, *events)
    code, out, err = run(topics, "--book=BTCUSDT", "--once")
    assert (code, out) == (1, "")
    assert said in err
    assert ("BACKFILL_ENABLED=false" in err) == ("but no snapshot" in said)
    assert err.endswith("\n")


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_one_line(broker: Broker) -> None:
    nothing = Topics("none", "none", "no-depth", broker.bootstrap_servers)
    code, out, err = run(nothing, "--book=BTCUSDT")
    assert (code, out) == (1, "")
    assert err == "consumer_example: there is no topic no-depth; the service and setup_kafka.py make it\n"


@pytest.mark.kafka
def test_it_waits_for_a_snapshot_follows_what_comes_and_ends_with_a_summary(topics: Topics) -> None:
    put(topics, update(1, 2))
    with started(topics, "--book=BTCUSDT") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert "WAITING for a snapshot" in next(lines)
        put(topics, snapshot(1), update(3, 4, b=[["10.5", "1"]]))
        live = next(line for line in lines if "LIVE" in line)
        assert "#4 " in live
        assert "bid 10.5 x 1  ask 11 x 1  spread 0.5  mid 10.75" in live
        put(topics, update(9, 9), b"no JSON", {"event_type": "depth_update"})
        assert "updates 5 to 8 are missing; waiting for a snapshot" in next(
            line for line in lines if "BROKEN" in line
        )
        put(topics, snapshot(9))
        next(line for line in lines if "LIVE" in line)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert out.splitlines()[-1] == (
        "BTCUSDT: 2 updates, 2 snapshots, 1 breaks, crossed 0; 2 bids and 2 asks known; live, 1 malformed"
    )
    assert "there is depth of BTCUSDT but no snapshot" in err
    assert "malformed depth_update: U is None" in err
    assert "\x1b" not in out + err


@pytest.mark.kafka
def test_on_a_terminal_it_draws_the_book_and_leaves_the_terminal_as_it_was(topics: Topics) -> None:
    put(topics, snapshot(1), update(2, 2))
    ours, theirs = pty.openpty()
    shown = b""
    try:
        with started(topics, "--book=BTCUSDT", stdout=theirs, COLUMNS="40", LINES="12", TERM="xterm") as process:
            deadline = time.monotonic() + LIMIT
            while b"bids" not in shown:
                assert time.monotonic() < deadline
                shown += os.read(ours, 65_536)
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
    finally:
        os.close(theirs)
        shown += os.read(ours, 65_536)
        os.close(ours)
    assert shown.index(b"\x1b[?1049h") < shown.index(b"LIVE") < shown.index(b"\x1b[?1049l")
    assert b"1 updates, 1 snapshots, 0 breaks, crossed 0" in shown.partition(b"\x1b[?1049l")[2]


@pytest.mark.kafka
@pytest.mark.parametrize("topics_made", [1, 7])
def test_the_partition_is_the_one_that_the_service_writes_the_symbol_to(topics_made: int, topics: Topics) -> None:
    one = Topics(topics.raw, topics.trades, f"{topics.depth}-{topics_made}", topics.bootstrap_servers)
    create_topics(one.bootstrap_servers, [one.depth], partitions=topics_made)
    for number, symbol in enumerate(("BTCUSDT", "ETHUSDT", "BNBUSDT", "币安USDT"), 1):
        put(one, snapshot(number), key=symbol.encode())
        code, out, _ = run(one, f"--book={symbol}", "--once", "--json")
        assert code == 0
        assert json.loads(out)["lastUpdateId"] == number


def rest_book(exchange: Exchange) -> dict[str, Any]:
    url = f"{exchange.rest_url}/api/v3/depth?symbol=BTCUSDT&limit=5000"
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.kafka
def test_the_book_from_kafka_alone_is_the_exchanges_own_after_a_cut(
    exchange_factory: Callable[..., Exchange], topics: Topics, start_service: StartService
) -> None:
    exchange = exchange_factory(rate=500, symbols=("BTCUSDT", "ETHUSDT"))
    service = start_service(
        exchange.ws_url,
        topics,
        BINANCE_SYMBOLS="BTCUSDT,ETHUSDT",
        BINANCE_STREAM_TYPES="trade,depth@100ms",
        BACKFILL_ENABLED="true",
        BACKFILL_SNAPSHOT_LEVELS=5000,
        CONNECTION_RECONNECT_INTERVAL=0.1,
    )
    service.ready()
    service.wait_for(lambda: service.status()["snapshots_taken"] >= 2, "a snapshot of each book")
    exchange.cut()
    service.wait_for(lambda: service.status()["snapshots_taken"] >= 4, "a snapshot of each book anew", within=30)
    before = told(topics)
    exchange.command("rate", 0)
    service.wait_for(
        lambda: told(topics)["lastUpdateId"] == rest_book(exchange)["lastUpdateId"], "the same id", 60
    )
    answer, truth = told(topics, "--levels=100000"), rest_book(exchange)
    assert answer["lastUpdateId"] == truth["lastUpdateId"] > before["lastUpdateId"]
    assert (answer["bids"], answer["asks"]) == (truth["bids"], truth["asks"])
    assert len(truth["bids"]) > 100
    assert service.stop() == 0
    whole = OrderBook()
    for record in read_depth(topics):
        whole.take(record)
    assert (whole.crossed, whole.snapshots >= 2, whole.update_id) == (0, True, truth["lastUpdateId"])
    assert [[level.price, level.quantity] for level in whole.bids()] == truth["bids"]


def read_depth(topics: Topics) -> list[dict[str, Any]]:
    records = read_all(topics.bootstrap_servers, topics.depth)
    return [json.loads(record.value or b"") for record in records if record.key == b"BTCUSDT"]


# What is drawn


def drawn(shown: OrderBook, width: int, height: int, *, levels: int = 10, said: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(BookPicture("BTCUSDT", shown, levels, NOW + 5_300).draw(console, said))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def large() -> OrderBook:
    bids = [[f"{60_000 - step / 100:.8f}", f"{step + 1}.50000000"] for step in range(500)]
    asks = [[f"{60_000.01 + step / 100:.8f}", f"{step + 1}.25000000"] for step in range(500)]
    return book(snapshot(1, bids, asks), update(2, 300, b=[["100.00000000", "1.00000000"]]))


def test_bids_stand_beside_asks_with_spread_middle_age_and_counts() -> None:
    lines = drawn(large(), 80, 24, levels=3).splitlines()
    assert lines[0].rstrip() == "BTCUSDT  LIVE  #300  last update 5.0 s ago"
    assert lines[1].rstrip() == "spread 0.01  mid 60000.005"
    rows = [line.split() for line in lines]
    assert ["1.5", "60000.00", "60000.01", "1.25"] in rows
    assert ["3.5", "59999.98", "60000.03", "3.25"] in rows
    assert "1 updates, 1 snapshots, 0 breaks, crossed 0; 501 bids and 500 asks known" in "\n".join(lines)
    assert "dim: beyond" not in "\n".join(lines)


def test_on_a_narrow_terminal_asks_stand_above_bids() -> None:
    rows = [line.split() for line in drawn(large(), 28, 30, levels=3).splitlines()]
    first = rows.index(["60000.03", "3.25"])
    assert rows[first : first + 7] == [
        ["60000.03", "3.25"],
        ["60000.02", "2.25"],
        ["60000.01", "1.25"],
        [],
        ["60000.00", "1.5"],
        ["59999.99", "2.5"],
        ["59999.98", "3.5"],
    ]


@pytest.mark.parametrize(("width", "height"), [(20, 12), (28, 16), (40, 20), (56, 12), (80, 24), (200, 60)])
@pytest.mark.parametrize("shown", [large(), book(), book(snapshot(1), update(9, 9))])
def test_a_book_fits_the_terminal(shown: OrderBook, width: int, height: int) -> None:
    lines = drawn(shown, width, height, levels=400, said="reading 1 partitions of binance-depth").splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < height


def test_levels_beyond_the_snapshot_are_pointed_out() -> None:
    assert "dim: beyond the snapshot" in drawn(large(), 80, 600, levels=501)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (book(), "WAITING for a snapshot"),
        (
            book(snapshot(1), update(2, 3), update(9, 9)),
            "BROKEN since 22:13:20 UTC: updates 4 to 8 are missing; waiting for a snapshot",
        ),
        (
            book(
                snapshot(900),
                update(901, 901),
                *(update(number, number, at=NOW + 5_000) for number in range(1, 9)),
            ),
            "BROKEN since 22:13:20 UTC: the exchange counts anew; waiting for a snapshot",
        ),
    ],
)
def test_a_book_that_is_not_known_says_why_and_shows_no_levels(shown: OrderBook, said: str) -> None:
    text = drawn(shown, 100, 24)
    assert said in text
    assert "spread" not in text
    assert "0 bids and 0 asks known" in text


def test_what_a_symbol_is_called_cannot_steer_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(BookPicture("BTC\x1b[2J", large(), 1, NOW).draw(console, "said \x1b[2J"))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--levels=3"],
        ["--once"],
        ["--book="],
        ["--book=A,B"],
        ["--book=A", "--levels=0"],
        ["--book=A", "--topics=raw"],
        ["--book=A", "--symbols=B"],
        ["--book=A", "--group=mine"],
        ["--book=A", "--from-beginning"],
        ["--book=A", "--json"],
    ],
)
def test_what_makes_no_sense_together_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
