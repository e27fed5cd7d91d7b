"""Dashboard, alert rules, runbook and catalogue, held against a real Prometheus that scrapes the real service."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sandbox.brokers import free_port
from tests.broker_fixtures import fresh_topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.brokers import Broker
    from tests.broker_fixtures import Topics
    from tests.exchange_fixtures import ExchangeProcess
    from tests.service_fixtures import ServiceProcess, StartService

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "binance-ingestion.json"
RULES = DEPLOY / "prometheus" / "rules" / "binance-ingestion.yml"
RULE_TESTS = DEPLOY / "prometheus" / "tests" / "binance-ingestion.yml"
PREFIX = "binance_ingestion_"
SYMBOLS = ("BTCUSDT", "ETHUSDT")
STREAM_TYPES = "aggTrade,trade,depth@100ms,kline_1m"
PATIENCE_S = 30.0
WINDOW = "4s"  # for what Grafana makes of the scrape interval
installed = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed: apt-get install prometheus",
)


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> dict[str, str]:
    """Return every query of every panel, and of the annotation, with its variables filled in; by panel."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    filled = {"$__rate_interval": WINDOW, "$instance": ".+", "$symbol": ".+"}
    for variable, value in filled.items():
        found = {name: query.replace(variable, value) for name, query in found.items()}
    return found


def names_in(text: str) -> set[str]:
    """Return the metrics that a text names."""
    return set(re.findall(r"\b(?:binance_ingestion|process|python)_\w+", text))


class Prometheus:
    """A real one on a free port, scraping one service twice a second."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask its API and return the data."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def numbers(self, query: str) -> list[float]:
        """Run a query; return the values that are numbers."""
        values = [float(series["value"][1]) for series in self.ask("query", query=query)["result"]]
        return [value for value in values if not math.isnan(value)]

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules as they were last evaluated."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


def settle(condition: Any, within: float = PATIENCE_S) -> Any:
    """Ask until the answer is good; return the last one, good or not."""
    deadline = time.monotonic() + within
    while True:
        try:
            good, answer = condition()
        except OSError as error:
            good, answer = False, error
        if good or time.monotonic() > deadline:
            return answer
        time.sleep(0.2)


@contextmanager
def scraping(service: ServiceProcess, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus over this service with the rules of the repository."""
    target = f"127.0.0.1:{service.port}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "binance-ingestion", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield Prometheus(port)
        finally:
            process.terminate()


@pytest.fixture
def healthy(exchange_process: Any, topics: Topics, start_service: StartService) -> ServiceProcess:
    """Start the real service between the simulated exchange and the broker, with events flowing."""
    symbols = ",".join(SYMBOLS)
    exchange: ExchangeProcess = exchange_process("--rate", "300", "--symbols", symbols)
    service = start_service(
        exchange.started["ws"],
        topics,
        BINANCE_SYMBOLS=symbols,
        BINANCE_STREAM_TYPES=STREAM_TYPES,
        CONNECTION_BATCH_TIMEOUT_SECONDS="0.5",
        SPOOL_MAX_BYTES="100000000",  # a healthy service has a disk with that much room
    )
    service.ready()
    return service


@installed
@pytest.mark.kafka
def test_no_panel_is_empty_and_no_alert_fires_on_a_healthy_service(
    healthy: ServiceProcess, tmp_path: Path
) -> None:
    with scraping(healthy, tmp_path) as prometheus:

        def empty() -> tuple[bool, list[str]]:
            without = [name for name, query in queries().items() if not prometheus.numbers(query)]
            return not without, without

        assert settle(empty) == []
        known = set(prometheus.ask("label/__name__/values"))
        assert names_in(DASHBOARD.read_text() + RULES.read_text()) - {"process_cpu"} <= known

        def evaluated() -> tuple[bool, list[dict[str, Any]]]:
            found = prometheus.rules()
            # Until the first scrape there is no target, and Prometheus says so.
            return {(rule["health"], rule["state"]) for rule in found} == {("ok", "inactive")}, found

        told = settle(evaluated)
        assert {rule["name"] for rule in told} == {rule["alert"] for rule in rules()}
        assert [(rule["name"], rule["health"], rule["state"]) for rule in told] == [
            (rule["name"], "ok", "inactive") for rule in told
        ]
    assert healthy.stop() == 0


@installed
def test_each_alert_fires_on_what_it_is_for_and_keeps_still_otherwise() -> None:
    done = subprocess.run(["promtool", "test", "rules", RULE_TESTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_of_its_own_and_is_part_of_the_healthy_one() -> None:
    cases = {case["name"]: case["alert_rule_test"] for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]}
    quiet = {case["alertname"] for case in cases.pop("a healthy service")}
    names = [rule["alert"] for rule in rules()]
    assert list(cases) == names
    assert quiet == set(names)
    for name, (case,) in cases.items():
        assert case["alertname"] == name
        assert len(case["exp_alerts"]) == 1


def test_the_runbook_has_a_section_for_each_alert_in_the_same_order() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == [rule["alert"] for rule in rules()]
    for rule in rules():
        section = sections[rule["alert"]]
        assert section.startswith(f"*{rule['labels']['severity']}* — {rule['annotations']['summary']}\n")
        assert "\n1. " in section
        assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"
    assert set(re.findall(r"\bBinanceIngestion\w+", text)) == set(sections)


def test_the_panels_that_the_runbook_names_exist() -> None:
    titles = {panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"]}
    text = re.sub(r"\s+", " ", (DEPLOY / "RUNBOOK.md").read_text())
    named = set(re.findall(r'[Pp]anels? "([^"]+)"(?: and "([^"]+)")?', text))
    assert named
    assert {title for pair in named for title in pair if title} <= titles


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (place["x"] + across, place["y"] + down) for across in range(place["w"]) for down in range(place["h"])
        }
        assert not cells & taken
        assert max(across for across, _ in cells) < 24
        taken |= cells


def catalogue() -> dict[str, tuple[str, str, str]]:
    """Return the table of deploy/OBSERVABILITY.md: type, labels and meaning by name."""
    text = (DEPLOY / "OBSERVABILITY.md").read_text().partition("<!-- metrics")[2].partition("\n\n")[0]
    rows = [re.findall(r"[^|]+", line) for line in text.splitlines() if line.startswith("|")]
    return {
        name.strip(" `"): (kind.strip(), labels.strip(), text.strip()) for name, kind, labels, text in rows[2:]
    }


@pytest.mark.kafka
def test_the_catalogue_lists_every_metric_of_a_running_service_and_no_other(healthy: ServiceProcess) -> None:
    healthy.wait_for(lambda: healthy.status()["kafka_produced"] > 100, "100 delivered")
    exposition = healthy.get("/metrics")[1].decode()
    served = {}
    for family in text_string_to_metric_families(exposition):
        if family.name.startswith(PREFIX):
            labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
            name = family.name + ("_total" if family.type == "counter" else "")
            served[name] = (family.type, ", ".join(f"`{label}`" for label in labels), family.documentation)
    # This one has no sample until something is lost, so its label cannot be seen here.
    served[f"{PREFIX}kafka_failed_by_reason_total"] = ("counter", "`reason`", "events that Kafka did not take")
    assert catalogue() == served


SHOWN_OTHERWISE = {
    "connection_failures_total": "connection_failures_by_reason_total",
    "connected": "connections_open",
    "kafka_failed_by_reason_total": "kafka_failed_total",
    "shard_count": "info",
    "shard_index": "info",
    "last_message_timestamp_seconds": "symbol_last_event_timestamp_seconds",
}


def test_every_metric_of_the_catalogue_is_on_the_dashboard_or_another_says_the_same_there() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names_in(DASHBOARD.read_text())}
    otherwise = {PREFIX + name: PREFIX + other for name, other in SHOWN_OTHERWISE.items()}
    assert set(catalogue()) - shown == set(otherwise)
    assert set(otherwise.values()) <= shown


@pytest.mark.kafka
def test_status_shows_every_symbol_kind_and_leg_of_a_running_service(healthy: ServiceProcess) -> None:
    def complete() -> bool:
        status = healthy.status()
        prices = [symbol["price"] for symbol in status["symbols"].values()]
        legs = [sum(leg["counts"]) for leg in status["latency"]["legs"].values()]
        every = len(prices) == len(SYMBOLS) and len(status["kinds"]) == len(STREAM_TYPES.split(","))
        return every and None not in prices and min(legs) > 100

    healthy.wait_for(complete, "complete")
    status = healthy.status()
    assert set(status["symbols"]) == set(SYMBOLS)
    assert {kind["event_type"] for kind in status["kinds"]} == {
        *("aggregate_trade", "trade", "depth_update", "kline"),
    }
    assert sum(kind["received"] for kind in status["kinds"]) == status["messages_received"]
    assert sum(kind["produced"] for kind in status["kinds"]) == status["kafka_produced"]
    assert sum(symbol["events"] for symbol in status["symbols"].values()) == status["messages_received"]
    assert status["in_flight_bytes"] <= status["in_flight_bytes_limit"]
    assert (status["spooling"], status["connection_failures_in_a_row"]) == (False, 0)


@pytest.mark.kafka
def test_a_stopping_service_says_so_and_stays_alive_until_it_has_ended(
    exchange_process: Any, own_broker: Broker, start_service: StartService
) -> None:
    exchange: ExchangeProcess = exchange_process("--rate", "300", "--symbols", ",".join(SYMBOLS))
    service = start_service(
        exchange.started["ws"], fresh_topics(own_broker.bootstrap_servers), BINANCE_SYMBOLS=",".join(SYMBOLS)
    )
    service.ready()
    own_broker.freeze()
    try:
        service.wait_for(lambda: b"acknowledged nothing for" in service.get("/ready")[1], "not acknowledged")
        service.send()
        service.wait_for(lambda: b'"stopping"' in service.get("/ready")[1], "stopping")
        assert service.get("/health")[0] == 200
    finally:
        own_broker.thaw()
    assert service.wait() in (0, 1)
