"""The house's rules: imports go down the floors, each third-party package has its doors, entry points start
fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffmoe_scale"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.stat().st_size)
FLOORS = {
    "config": 1,
    "parallel": 1,
    "scenes": 1,
    "files": 1,
    "recent": 1,
    "unicode": 1,
    "nn": 1,
    "encoders": 2,
    "diffusion": 2,
    "telemetry": 2,
    "checkpoint": 2,
    "cli": 3,
    "moe": 3,
    "data/shards": 3,
    "data/order": 3,
    "data/features": 3,
    "data/reading": 3,
    "model": 4,
    "prepare": 4,
    "sampling": 5,
    "train": 6,
    "evaluation": 6,
    "report": 7,
    "bench": 7,
    "pretrain": 8,
    "sample": 8,
    "evaluate": 8,
}
"""Imports go to a lower floor, or stay within the folder. Doors (floor 8) may import each other's arguments."""
DOORS = {
    "deepspeed": {"train/engine", "train/zero", "parallel/context", "parallel/expert_groups"},
    "megatron": {
        "parallel/context",
        "moe/routers",
        "moe/dispatch",
        "moe/experts",
        "moe/grouped_linear",
        "moe/layer",
        "moe/transformer_engine",
        "model/networks",
        "moe/router",
        "model/transformer",
    },
    "transformer_engine": {"moe/transformer_engine"},
    "apex": {"train/optim"},
    "webdataset": {"data/shards/index", "prepare/publish", "data/shards/remote"},
    "pyarrow": {"prepare/parquet"},
    "imagehash": {"prepare/duplicates"},
    "sentencepiece": {"encoders/text/tokenizer"},
    "open_clip": {"encoders/text/clip"},
    "diffusers": {"encoders/autoencoder/diffusers"},
    "wandb": {"telemetry/trackers"},
    "matplotlib": {"report/plots", "telemetry/picture_grid"},
    "pydantic": {"config/load", "checkpoint/manifest"},
    "yaml": {"config/load", "config/help", "config/yaml_file"},
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def floor_of(name: str) -> int:
    """The floor of the longest path that FLOORS holds."""
    parts = name.split("/")
    return next(FLOORS[key] for n in range(len(parts), 0, -1) if (key := "/".join(parts[:n])) in FLOORS)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, those for type checking alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_the_floors(path):
    name = name_of(path)
    if name == "__init__":
        return
    for imported in imports(path):
        if not imported.startswith("diffmoe_scale."):
            continue
        other = imported.removeprefix("diffmoe_scale.").replace(".", "/")
        is_same_room = other.split("/")[0] == name.split("/")[0] or floor_of(name) == 8
        assert floor_of(other) < floor_of(name) or is_same_room, (
            f"{name} (floor {floor_of(name)}) imports {other} (floor {floor_of(other)})"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_packages_come_in_through_their_doors(path):
    for imported in imports(path):
        doors = DOORS.get(imported.split(".")[0])
        assert doors is None or name_of(path) in doors, (
            f"{name_of(path)} imports {imported}; its doors are {sorted(doors or ())}"
        )


@pytest.mark.parametrize("module", ["pretrain", "sample", "evaluate"])
def test_help_of_an_entry_point_does_not_load_torch(module):
    code = f"import sys, diffmoe_scale.{module} as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout
