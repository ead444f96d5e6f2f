"""A run's figures for Prometheus to fetch."""

import re
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from diffmoe_scale.telemetry.metrics import MetricValue

NO_NAME = re.compile("[^a-zA-Z0-9_]+")
BLOCK = re.compile(r"(moe/(?:load|threshold|bias|deployed))/(\d+)")


def split_block(name: str) -> tuple[str, str]:
    """A name of metrics.jsonl without its block, and the block; "" where it has none."""
    match = BLOCK.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def gauge_name(family: str) -> str:
    """The name that Prometheus has for a name of metrics.jsonl without block."""
    return "diffmoe_" + NO_NAME.sub("_", family)


class PrometheusTracker:
    """The figures of the last log step as gauges at http://ADDRESS:PORT/metrics, `diffmoe_...` with the label
    `run`; those of a block or of an expert have the labels `block` and `index` as well."""

    def __init__(self, run_name: str, *, address: str, port: int) -> None:
        """Raises: OSError if the port is taken or the address is none of this machine."""
        self._run = run_name
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._server, self._thread = start_http_server(port, addr=address, registry=self._registry)

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def log(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        for name, value in {"step": float(step), **metrics}.items():
            family, block = split_block(name)
            gauge = self._gauge(family)
            values = enumerate(value) if isinstance(value, list) else [("", value)]
            for index, number in values:
                gauge.labels(self._run, block, str(index)).set(number)

    def images(self, step: int, name: str, path: Path) -> None:
        """Prometheus takes numbers alone."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _gauge(self, family: str) -> Gauge:
        if family not in self._gauges:
            labels = ("run", "block", "index")
            self._gauges[family] = Gauge(
                gauge_name(family), f"{family} of metrics.jsonl", labels, registry=self._registry
            )
        return self._gauges[family]
