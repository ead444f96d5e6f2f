"""No file of the package, the tools and launch/ calls what runs code that stands in data, or the parser that
deep JSON ends with a traceback."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNSAFE = {
    "compile",
    "eval",
    "exec",
    "json.load",
    "json.loads",
    "marshal.load",
    "marshal.loads",
    "os.popen",
    "os.system",
    "pickle.load",
    "pickle.loads",
    "pyarrow.deserialize",
    "shelve.open",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.hub.load",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
NEEDED = {
    "torch.load": ("weights_only", "True"),
    "np.load": ("allow_pickle", "False"),
    "numpy.load": ("allow_pickle", "False"),
    "Image.open": ("formats", ""),
}
"""Calls that are safe with a keyword, and its value where only one is."""
REFUSED = {
    ("shell", "True"),
    ("allow_pickle", "True"),
    ("weights_only", "False"),
    ("trust_remote_code", "True"),
}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Imported nowhere but in the files below."""
PICKLES = {"diffmoe_scale/checkpoint/files.py", "diffmoe_scale/convert/torch_archive.py"}
"""One reads pickles by a list of names, the other only writes them."""
JSON = {"diffmoe_scale/json_text.py", "diffmoe_scale/convert/shipped/tokenizer.py"}
"""The one reader of JSON, and code that is shipped without it."""


def problems(text: str) -> Iterator[str]:
    """What a source text does that it must not, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            is_unsafe = (node.module or "") in MODULES and names != {"pickle.UnpicklingError"}
            found = sorted(names if is_unsafe else names & (UNSAFE | NEEDED.keys() - {"PIL.Image.open"}))
        elif isinstance(node, ast.Call):
            found = list(_calls(node))
        else:
            continue
        yield from (f"line {node.lineno}: {name}" for name in found)


def _calls(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func).replace("PIL.Image", "Image")
    keywords = {keyword.arg or "**": ast.unparse(keyword.value) for keyword in node.keywords}
    if name in UNSAFE:
        yield name
    if name in NEEDED:
        keyword, value = NEEDED[name]
        if keyword not in keywords or value not in ("", keywords[keyword]):
            yield f"{name} without {keyword}{'=' * bool(value)}{value}"
    yield from (f"{keyword}={value}" for keyword, value in keywords.items() if (keyword, value) in REFUSED)


def test_no_file_runs_what_stands_in_data() -> None:
    paths = [
        path for folder in ("diffmoe_scale", "tools", "launch") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(paths) > 100
    found = {
        f"{path.relative_to(ROOT)} {problem}"
        for path in paths
        for problem in problems(path.read_text(encoding="utf-8"))
    }
    pickles = {problem for problem in found if problem.endswith(": pickle")}
    texts = {problem for problem in found if problem.endswith(": json.loads")}
    assert found == pickles | texts
    assert {problem.split()[0] for problem in pickles} == PICKLES
    assert {problem.split()[0] for problem in texts} == JSON


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import joblib.numpy_pickle",
        "from pickle import loads",
        "from os import system",
        "from yaml import load",
        "def f(file):\n    return pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "with PIL.Image.open(path) as image: pass",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_each_unsafe_call_is_found(text: str) -> None:
    assert list(problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "Image.open(path, formats=['PNG'])",
        "model.eval()",
        "re.compile(text)",
        "yaml.safe_dump(tree)",
        "subprocess.run(command, check=True)",
        "from yaml import safe_load",
    ],
)
def test_safe_calls_are_accepted(text: str) -> None:
    assert not list(problems(text))
