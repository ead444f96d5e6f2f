import json

from tools import bench_sampling

SIZES = {"width": "16", "depth": "2", "experts": "4", "batch": "8", "latent-size": "16", "steps": "2"}
TINY = [word for name, value in SIZES.items() for word in (f"--{name}", value)]
TINY += ["--rounds", "2", "--threads", "1", "--device", "cpu", "--every", "2"]


def test_table_and_file_hold_every_contender(tmp_path, capsys):
    output = tmp_path / "sampling.json"
    assert bench_sampling.main([*TINY, "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert len(result["table"]) == 4 and result["settings"]["every"] == "[2]"
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_sizes_that_do_not_fit_are_an_error(capsys):
    assert bench_sampling.main([*TINY, "--every", "0"]) == 2
    assert "--every is (0,)" in capsys.readouterr().err
    assert bench_sampling.main([*TINY, "--steps", "0"]) == 2
    assert "--steps is 0" in capsys.readouterr().err
