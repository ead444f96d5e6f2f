import argparse

import pytest

from diffmoe_scale.prepare.resumable import resumable


def test_ctrl_c_ends_a_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(parsed: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert resumable(interrupted)(argparse.Namespace()) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"
