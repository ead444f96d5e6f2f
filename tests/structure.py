"""The rules of the source tree as functions: each gets the root of a tree and returns what breaks the rule.

Every function answers with a dict: what breaks the rule (a file, function or folder) and why.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.size_rules import long_files, long_functions, wide_lines
from tests.source_files import imports, name_of, python_files, tree_of

TOOLS_LEVEL = 10
LEVELS = {
    "words": 0,
    "config": 1,
    "parallel": 1,
    "scenes": 1,
    "files": 1,
    "recent": 1,
    "unicode": 1,
    "json_text": 0,
    "lock": 0,
    "nn": 1,
    "encoders": 2,
    "diffusion": 2,
    "telemetry": 2,
    "checkpoint": 2,
    "cli": 3,
    "moe": 3,
    "data": 3,
    "model": 4,
    "prepare": 4,
    "plan": 5,
    "sampling": 6,
    "convert": 7,
    "train": 7,
    "evaluation": 7,
    "evaluation/metrics": 5,
    "report": 8,
    "bench": 8,
    "study": 9,
    "plan/measure": 8,
    "plan/measure_ranks": 8,
    "plan/measure_table": 8,
    "plan/__main__": 9,
    "doctor": 9,
    "page": 9,
    "pretrain": 9,
    "sample": 9,
    "evaluate": 9,
    "__main__": 9,
}
"""A file imports from lower levels or from its own folder; a file or inner folder with a level of its own is
named whole. Nothing imports files of tools/."""
USERS = {
    "deepspeed": {"train/zero", "parallel/context", "parallel/device", "parallel/expert_groups"},
    "megatron": {
        "parallel/context",
        "moe/dispatch",
        "moe/experts",
        "moe/grouped_linear",
        "moe/layer",
        "moe/transformer_engine",
        "model/networks",
        "moe/router",
        "model/build",
        "model/transformer",
        "plan/build",
        "plan/fake_ranks",
    },
    "transformer_engine": {"moe/transformer_engine"},
    "triton": {"moe/triton_kernels"},
    "apex": {"train/optim"},
    "webdataset": {"data/shards/index", "prepare/publish", "data/shards/remote", "bench/data_contenders"},
    "braceexpand": {"data/shards/patterns"},
    "pyarrow": {"prepare/parquet"},
    "imagehash": {"prepare/duplicates"},
    "sentencepiece": {"encoders/text/tokenizer", "convert/shipped/tokenizer"},
    "open_clip": {
        "convert/pipeline_parts",
        "convert/shipped/open_clip",
        "encoders/text/clip",
        "evaluation/metrics/clip_network",
    },
    "timm": {"evaluation/metrics/timm_network"},
    "torch_fidelity": {"evaluation/metrics/fidelity"},
    "transformers": {"encoders/text/architecture", "encoders/vision/teacher", "evaluation/judge/local_model"},
    "tokenizers": {"encoders/text/vocabulary", "convert/shipped/tokenizer"},
    "safetensors": {
        "encoders/text/weights",
        "data/features/format",
        "data/features/locate",
        "data/features/source",
        "bench/data_contenders",
    },
    "scipy": {"scenes/checker", "evaluation/harness/statistics", "study/statistics"},
    "torchvision": {"bench/data_contenders"},
    "diffusers": {
        "convert/diffusers",
        "convert/shipped/checked",
        "convert/shipped/pipeline",
        "convert/shipped/text_encoder",
        "convert/shipped/transformer",
        "encoders/autoencoder/diffusers",
    },
    "wandb": {"telemetry/trackers"},
    "matplotlib": {
        "report/capacity_plots",
        "report/health_plots",
        "report/plots",
        "study/plots",
        "telemetry/picture_grid",
    },
    "prometheus_client": {"telemetry/prometheus"},
    "pydantic": {
        "config/load",
        "checkpoint/manifest",
        "data/shards/record",
        "evaluation/harness/result",
        "study/record",
    },
    "werkzeug": {"page/server"},
    "yaml": {"config/load", "config/help", "config/yaml_file"},
}
"""Third-party packages and the files that import them: no others, and each of them."""
EVERYWHERE = {"torch", "numpy", "PIL", "tqdm"}
"""Third-party packages that any file may import."""
OURS = {"diffmoe_scale", "tools", "tests"}


def edges(root: Path) -> dict[str, set[str]]:
    """Which file imports which, by name. The package's own `__init__` and its lazy imports do not count."""
    files = {name_of(root, path): path for path in python_files(root, "diffmoe_scale", "tools")}
    files.pop("__init__", None)
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = {module.removeprefix("diffmoe_scale.").replace(".", "/") for module, _ in imports(path)}
        targets |= {f"{target}/__init__" for target in targets}
        found[name] = (targets & files.keys()) - {name}
    return found


def level_of(name: str) -> int:
    parts = name.split("/")
    if parts[0] == "tools":
        return TOOLS_LEVEL
    names = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next(LEVELS[name] for name in names if name in LEVELS)


def upward_imports(root: Path) -> dict[str, str]:
    found = {}
    for name, targets in edges(root).items():
        for other in sorted(targets):
            is_same_folder = "/" in name and other.split("/")[0] == name.split("/")[0] != "tools"
            if level_of(other) >= level_of(name) and not is_same_folder:
                levels = f"level {level_of(name)} imports level {level_of(other)}"
                found[f"{name} -> {other}"] = f"{levels}; move what it needs to a lower level"
    return found


def circles(root: Path) -> dict[str, str]:
    """Files that import each other in a circle; imports in functions and for type checking count."""
    direct = edges(root)
    found = {}
    for start in direct:
        reached: set[str] = set()
        todo = list(direct[start])
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += direct[name]
        if start in reached:
            found[start] = "imports itself through " + ", ".join(sorted(reached & direct[start]))
    return found


def relative_imports(root: Path) -> dict[str, str]:
    paths = python_files(root, "diffmoe_scale", "tools", "tests")
    return {
        name_of(root, path): "use the full name of the module"
        for path in paths
        if any(is_relative for _, is_relative in imports(path))
    }


def stray_packages(root: Path) -> dict[str, str]:
    found = {}
    for path in python_files(root, "diffmoe_scale", "tools"):
        packages = {module.split(".")[0] for module, is_relative in imports(path) if not is_relative}
        for package in packages - sys.stdlib_module_names - EVERYWHERE - OURS:
            if (name := name_of(root, path)) not in USERS.get(package, set()):
                allowed = ", ".join(sorted(USERS.get(package, {"no file"})))
                found[f"{name} -> {package}"] = f"only {allowed} may import it (USERS)"
    return found


def lost_packages(root: Path) -> dict[str, str]:
    """Files that USERS lists, but that import the package no more."""
    paths = {name_of(root, path): path for path in python_files(root, "diffmoe_scale", "tools")}
    found = {}
    for package, users in USERS.items():
        for name in users & paths.keys():
            if package not in {module.split(".")[0] for module, _ in imports(paths[name])}:
                found[f"{name} -> {package}"] = "it does not import it; take it out of USERS"
    return found


def untrue_maps(root: Path) -> dict[str, str]:
    """Folders whose `__init__` docstring does not name each file at the start of a line, or one too many."""
    found = {}
    folders = {path.parent for path in python_files(root, "diffmoe_scale")} - {root / "diffmoe_scale"}
    for folder in sorted(folders):
        files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        files |= {f"{inner.name}/" for inner in folder.iterdir() if any(inner.glob("*.py"))}
        init = folder / "__init__.py"
        text = (ast.get_docstring(tree_of(init)) if init.exists() else None) or ""
        named = set(mapped_names(text))
        if named != files:
            problem = f"not in the map: {sorted(files - named)}; no file: {sorted(named - files)}"
            found[name_of(root, folder)] = problem
    return found


def mapped_names(docstring: str) -> Iterator[str]:
    """First words of lines `name: text`, `name.py  text` and `name/: text` below the first paragraph."""
    for line in docstring.splitlines()[1:]:
        word, _, rest = line.partition(" ")
        if rest and (word.endswith((":", ".py", "/"))) and not line.endswith(":"):
            yield word.removesuffix(":").removesuffix(".py")


RULES = {
    rule.__name__: rule
    for rule in (
        upward_imports,
        circles,
        relative_imports,
        stray_packages,
        lost_packages,
        long_files,
        wide_lines,
        long_functions,
        untrue_maps,
    )
}
