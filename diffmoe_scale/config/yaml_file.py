"""YAML text to a tree. YAML can hold far more than settings: the rest is refused in a sentence."""

import difflib
from collections.abc import Hashable
from pathlib import Path
from typing import Any  # YAML trees

import yaml

LARGEST_FILE = 1 << 20
MOST_NODES = 20_000
"""With every alias replaced by what it names: a few lines of YAML can stand for more than memory holds."""
MERGE = "tag:yaml.org,2002:merge"
UNREADABLE = (ValueError, KeyError, OverflowError, TypeError, AttributeError)
"""What yaml 6.0.3 raises for dates beyond the calendar and for tags on values of another kind."""
ENCODING_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class _Loader(yaml.SafeLoader):
    """Only safe types, and no key twice. What cannot be read is a yaml.MarkedYAMLError with its line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # a YAML tree
        try:
            return super().construct_object(node, deep)  # type: ignore[no-untyped-call]  # of yaml's stubs
        except UNREADABLE as error:
            text = f"{str(node.value)[:80]!r} cannot be read as a value ({error})"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # `!!set [1]`: refused below
        for key_node, _ in pairs:
            if key_node.tag == MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is no plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(key)[:80]!r} stands there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a config file. Raises: ValueError naming the file and, where there is one, the line."""
    if not path.exists():
        names = [other.name for other in path.parent.glob("*.y*ml")]
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise ValueError(f"config file {path} does not exist{hint}")
    if not path.is_file():
        raise ValueError(f"config file {path} is a folder or a device; expected a YAML file")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(
            f"config file {path} has {size} bytes; expected settings, at most {LARGEST_FILE} bytes"
        )
    data = path.read_bytes()
    for mark, name in ENCODING_MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"config file {path} is in {name}; save it as UTF-8")
    try:
        tree = parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"config file {path} is not in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except ValueError as error:
        raise ValueError(f"config file {path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise ValueError(f"config file {path} holds a {kind}; expected sections such as 'run:' and 'data:'")
    return tree


def parse_yaml(text: str) -> Any:  # a YAML tree
    """Raises: ValueError with one line that says what is wrong and where."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count_nodes(node, {}, set())
            return loader.construct_document(node)  # type: ignore[no-untyped-call]  # of yaml's stubs
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]  # of yaml's stubs
    except RecursionError as error:
        raise ValueError("it is nested too deeply for settings") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{(error.problem or 'it cannot be read')[:200]}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _count_nodes(node: yaml.Node, counted: dict[int, int], open_nodes: set[int]) -> int:
    """Nodes below and with this one, aliases counted as what they name."""
    if id(node) in open_nodes:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias stands within what it names")
    if id(node) not in counted:
        open_nodes.add(id(node))
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        counted[id(node)] = 1 + sum(_count_nodes(part, counted, open_nodes) for part in inner)
        open_nodes.discard(id(node))
        if counted[id(node)] > MOST_NODES:
            raise ValueError(f"it holds more than {MOST_NODES} values; name files by a pattern instead")
    return counted[id(node)]
