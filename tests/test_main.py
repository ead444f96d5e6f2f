"""`python -m diffmoe_scale`: the list of commands, and a command by its name."""

import sys
from pathlib import Path

import pytest

from diffmoe_scale.__main__ import COMMANDS, TOOLS, main

ROOT = Path(__file__).parents[1]


def test_list_names_every_command_and_tool(capsys):
    # tools/evaluate.py is the command itself.
    assert {*TOOLS, "evaluate"} == {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert main([]) == 0
    printed = capsys.readouterr().out
    documented = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name in (*COMMANDS, *TOOLS):
        assert f"  {name} " in printed and f"`{name}`" in documented


@pytest.mark.parametrize("name", ["pretrain", "compare_runs"])
def test_a_command_by_its_name_gets_the_arguments(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["diffmoe_scale"])
    with pytest.raises(SystemExit) as end:
        main([name, "--version"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out.startswith("diffmoe_scale ")


def test_unknown_command_is_a_wrong_use(capsys):
    assert main(["smaple"]) == 2
    assert capsys.readouterr().err == "error: 'smaple' is no command here; did you mean sample?\n"
    assert main(["frobnicate"]) == 2
    assert "'frobnicate' is no command here; expected one of pretrain, " in capsys.readouterr().err


def test_a_tool_is_not_proposed_where_the_repository_is_not(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("diffmoe_scale.__main__.FOLDER", tmp_path)
    assert main(["find_gamma"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'find_gamma' is tools/find_gamma.py of the repository, which is not here")
