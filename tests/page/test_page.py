"""The command with a trained run: over HTTP, and in a headless Chromium where there is one."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale import sample
from tests.ranks import run_alone, run_on_ranks
from tests.test_sample import SETTINGS, call, train
from tests.train.runs import text_settings

CHROMIUM = "/usr/bin/chromium"
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    settings = [*text_settings(folder), *SETTINGS, "checkpoint.every=2", "moe.router_init_std=0.5"]
    run_on_ranks(train, 1, settings, expert_parallel=1)
    return folder / "run"


@pytest.fixture(scope="module")
def address(run):
    """Of the page, which a process of its own serves."""
    command = [sys.executable, "-m", "diffmoe_scale.page", "--checkpoint", str(run), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "sampling.calibration_images=4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=run.parent,
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found, process.communicate(timeout=30)
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in said, said


def form(run, **changes):
    plain = {
        "checkpoint": str(run),
        "weights": "ema",
        "prompt": "caption 1",
        "negative_prompt": "",
        "seed": 5,
        "guidance": 3.0,
        "sampler": "euler",
        "steps": 2,
        "experts": "static",
        "capacity": 1.0,
        "gamma": 0.5,
    }
    return plain | changes


def draw(address, asked):
    """The events of a drawing, by kind."""
    request = urllib.request.Request(
        f"{address}/draw", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    events = defaultdict(list)
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            event = json.loads(line)
            events[event["kind"]].append(event)
    return events


def pixels_of(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_picture_is_the_one_that_sample_draws(address, run, tmp_path):
    output = tmp_path / "one.png"
    command = ["--checkpoint", str(run), "--prompt", "caption 1", "--count", "1", "--seed", "5"]
    command += ["--output", str(output), "sampling.selection=static", "sampling.guidance=3.0"]
    ((code, text),) = run_alone(call, sample.main, [command])
    assert code == 0, text
    (picture,) = draw(address, form(run))["picture"]
    drawn = base64.b64decode(picture["png"])
    np.testing.assert_array_equal(pixels_of(drawn), pixels_of(output.read_bytes()))
    with Image.open(io.BytesIO(drawn)) as file:
        assert (file.info["prompt"], file.info["seed"]) == ("caption 1", "5")
    assert f"{picture['calls']:.4g} network calls" in text and picture["flops"] in text


def test_the_heat_map_counts_the_experts_of_each_token(address, run):
    events = draw(address, form(run, experts="interval", gamma=0.3))
    (picture,) = events["picture"]
    by_time = defaultdict(list)
    for found in events["call"]:
        experts = list(base64.b64decode(found["experts"]))
        assert len(experts) % (found["rows"] * found["columns"]) == 0
        by_time[found["time"]].append(sum(experts) / len(experts))
    assert len(by_time) == 2 and {found["half"] for found in events["call"]} == {
        "conditional",
        "unconditional",
    }
    means = [sum(values) / len(values) for values in by_time.values()]
    assert picture["capacity"] == pytest.approx(sum(means) / len(means), abs=1e-6)


def test_a_capacity_is_calibrated_before_the_picture(address, run):
    events = draw(address, form(run, experts="gamma", capacity=0.9))
    assert events["picture"] and any("gamma" in event["text"] for event in events["status"])
    assert len(list((run / "calibrations").glob("*.json"))) == 1


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"checkpoint": "/no/run"}, "/no/run is no run"),
        ({"weights": "ema2"}, "holds none; give --weights ema"),
        ({"steps": 0}, "sampling.steps is 0"),
        ({"steps": 2.5}, "sampling.steps is 2.5; expected a number"),
        ({"sampler": "ddim"}, "sampling.sampler is 'ddim'; expected one of euler"),
        ({"guidance": None}, "guidance is empty"),
        ({"guidance": 1.0, "negative_prompt": "x"}, "a negative prompt was given, but"),
        ({"experts": "gamma", "capacity": 40.0}, "sampling.capacity is 40"),
    ],
)
def test_what_is_wrong_is_a_sentence(address, run, changes, says):
    events = draw(address, form(run, **changes))
    (error,) = events["error"]
    assert says in error["text"] and not events["picture"]


def test_a_checkpoint_that_was_removed_is_said_and_the_run_goes_on(address, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = copy / "checkpoints" / "step_00000004"
    assert draw(address, form(newest))["picture"][0]["step"] == 4
    assert draw(address, form(copy))["picture"][0]["step"] == 4
    shutil.rmtree(newest)
    (error,) = draw(address, form(newest))["error"]
    assert "is not there, or was removed" in error["text"]
    assert draw(address, form(copy))["picture"][0]["step"] == 2
    shutil.rmtree(copy)
    (error,) = draw(address, form(copy))["error"]
    assert "is no run" in error["text"]
    assert draw(address, form(run))["picture"]


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not there (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


def test_in_a_browser_a_typed_prompt_becomes_a_picture_and_its_maps(address, browser, run, tmp_path):
    from playwright.sync_api import expect

    page = browser.new_page()
    hosts, troubles = set(), []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(address)
    expect(page.locator("#model")).to_contain_text("step 4")
    page.locator("#prompt").press_sequentially("caption 1")
    page.click("#draw")
    expect(page.locator("#status")).to_have_text("done", timeout=30_000)
    expect(page.locator("#facts")).to_contain_text("FLOP")
    is_drawn = "picture => picture.complete && picture.naturalWidth"
    assert page.locator("#picture").evaluate(is_drawn) == 16
    expect(page.locator("#legend")).to_contain_text("experts")
    assert page.locator("#maps").bounding_box()["width"] > 100
    page.locator("#maps").click(position={"x": 70, "y": 30})
    expect(page.locator("#overlay")).to_be_visible()
    expect(page.locator("#where")).to_contain_text("experts a token")
    page.fill("#checkpoint", str(tmp_path))
    page.click("#draw")
    expect(page.locator("#error")).to_contain_text(f"{tmp_path} is no run")
    page.fill("#checkpoint", str(run))
    page.fill("#steps", "")
    page.click("#draw")
    expect(page.locator("#error")).to_have_text("steps is empty; expected a number")
    assert not troubles and hosts <= {address.removeprefix("http://"), ""}
    page.close()
