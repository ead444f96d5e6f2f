"""Processes that a study starts."""

import subprocess
import sys
import time
from pathlib import Path


def test_a_process_ends_with_the_one_that_started_it() -> None:
    """Killed without a chance to pass it on."""
    code = (
        "import os, sys, time\n"
        "from diffmoe_scale.study.process import start_process\n"
        "words = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
        "process = start_process(words, open(os.devnull, 'wb'), {})\n"
        "print(process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path(f"/proc/{int(parent.stdout.readline())}/stat")
    assert child.exists()
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not child.exists() or child.read_text(encoding="utf-8").split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the process outlived its parent")
