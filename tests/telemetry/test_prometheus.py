import math
import socket
import urllib.request
from pathlib import Path

import pytest

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.telemetry import TelemetryConfig
from diffmoe_scale.telemetry.prometheus import PrometheusTracker
from diffmoe_scale.telemetry.trackers import build_trackers
from tests.ports import free_port


def scrape(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_last_line_is_answered_with_its_blocks_and_experts() -> None:
    tracker = PrometheusTracker("demo", address="127.0.0.1", port=0)
    try:
        tracker.log(10, {"loss/diffusion": 0.5, "moe/load/3": [0.75, 1.25], "moe/health/overlap": [0.125]})
        tracker.log(15, {"moe/deployed/5": [0.5], "moe/bias/5": [0.001]})
        tracker.log(20, {"loss/diffusion": 0.25, "optimizer/gradient_norm": math.inf})
        lines = scrape(tracker.port)
    finally:
        tracker.close()
    assert 'diffmoe_step{block="",index="",run="demo"} 20.0' in lines
    assert 'diffmoe_loss_diffusion{block="",index="",run="demo"} 0.25' in lines
    assert 'diffmoe_moe_deployed{block="5",index="0",run="demo"} 0.5' in lines
    assert 'diffmoe_moe_bias{block="5",index="0",run="demo"} 0.001' in lines
    assert 'diffmoe_moe_load{block="3",index="1",run="demo"} 1.25' in lines
    assert 'diffmoe_moe_health_overlap{block="",index="0",run="demo"} 0.125' in lines
    assert 'diffmoe_optimizer_gradient_norm{block="",index="",run="demo"} +Inf' in lines


def test_the_port_is_free_again_after_the_run() -> None:
    tracker = PrometheusTracker("demo", address="127.0.0.1", port=0)
    tracker.close()
    PrometheusTracker("demo", address="127.0.0.1", port=tracker.port).close()


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = TelemetryConfig(tensorboard=False, prometheus_port=port)
        with pytest.raises(
            RunError, match=r"Prometheus did not start: .*; choose another telemetry\.prometheus_port"
        ):
            build_trackers(config, tmp_path, {})


def test_it_listens_at_this_machine_alone_unless_told_otherwise(tmp_path: Path) -> None:
    port = free_port()
    (tracker,) = build_trackers(TelemetryConfig(tensorboard=False, prometheus_port=port), tmp_path, {})
    try:
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex(("127.0.0.1", port)) == 0
        with socket.socket() as other:
            other.settimeout(2)
            assert other.connect_ex(("127.0.0.2", port)) != 0
    finally:
        tracker.close()
