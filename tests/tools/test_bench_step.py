import json

from tools import bench_step

SIZES = {"width": "16", "depth": "2", "experts": "2", "batch": "2", "latent-size": "8"}
TINY = [word for name, value in SIZES.items() for word in (f"--{name}", value)]
TINY += ["--rounds", "2", "--threads", "1", "--device", "cpu"]


def test_every_contender_of_every_phase_is_in_table_and_file(tmp_path, capsys):
    output = tmp_path / "step.json"
    assert bench_step.main([*TINY, "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    table, names = result["table"], ["dense", "scatter_loop", "loop", "grouped"]
    assert [(row["phase"], row["contender"]) for row in table] == [
        (phase, name) for phase in ("forward+backward", "step", "inference") for name in names
    ]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(table)
    given = {name.replace("-", "_"): value for name, value in SIZES.items()}
    others = {"every": "2", "rounds": "2", "threads": "1", "dtype": "fp32", "device": "cpu"}
    assert result["settings"] == given | others | {"is_compiled": "False", "output": str(output)}


def test_sizes_that_do_not_fit_are_an_error(capsys):
    assert bench_step.main([*TINY, "--latent-size", "7"]) == 2
    assert "choose a divisor" in capsys.readouterr().err
    assert bench_step.main(["--batch", "0"]) == 2
    assert "--batch is 0" in capsys.readouterr().err
