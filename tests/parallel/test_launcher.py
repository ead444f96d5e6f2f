import subprocess
import sys

import pytest

from diffmoe_scale.parallel.launcher import adopt_launcher_variables

TWO_RANKS = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"RANK": ""}, "RANK"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR"),
        ({"MASTER_PORT": ""}, "MASTER_PORT"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT"),
        ({"RANK": "2"}, "RANK"),
        ({"RANK": "-1"}, "RANK"),
        ({"RANK": "1.0"}, "RANK"),
        ({"RANK": "\u0661"}, "RANK"),
        ({"RANK": "9" * 5000}, "RANK"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK"),
        ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_WORLD_SIZE"),
        ({"LOCAL_SIZE": "x"}, "LOCAL_SIZE"),
    ],
    ids=str,
)
def test_variables_that_are_wrong_or_contradict_others_are_named(changes: dict[str, str], name: str) -> None:
    assert adopt_launcher_variables(dict(TWO_RANKS)) == 1
    with pytest.raises(ValueError, match=f"^{name} is ") as refusal:
        adopt_launcher_variables(TWO_RANKS | changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_variables_of_which_some_are_missing_are_refused(missing: str) -> None:
    environment = {name: value for name, value in TWO_RANKS.items() if name != missing}
    with pytest.raises(ValueError, match=f"{missing} is not set"):
        adopt_launcher_variables(environment)


def test_a_local_rank_alone_contradicts_a_world_of_one() -> None:
    with pytest.raises(ValueError, match="LOCAL_RANK is '3'; expected 0"):
        adopt_launcher_variables({"LOCAL_RANK": "3"})


def test_torch_is_not_needed() -> None:
    code = (
        "import sys, diffmoe_scale.parallel.launcher; sys.exit(any(m in sys.modules for m in "
        "('torch', 'deepspeed')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
