import pytest

from diffmoe_scale.config.origin import FOREIGN, mark_foreign, split_foreign


@pytest.mark.parametrize("key", ["train", "validation"])
@pytest.mark.parametrize(
    "pattern", ["pipe:touch x", "{p,q}ipe:touch x", "pipe{:,;}touch x", "a.tar::pipe:touch x", "p{i\n,}pe:x"]
)
def test_a_pattern_that_may_be_a_command_is_marked_wherever_it_stands(key: str, pattern: str) -> None:
    tree: dict[str, dict[str, list[object]]] = {"data": {key: ["a.tar", pattern, {"shards": [pattern]}]}}
    mark_foreign(tree)
    plain, marked, mixed = tree["data"][key]
    assert plain == "a.tar" and marked == FOREIGN + pattern and mixed == {"shards": [FOREIGN + pattern]}
    assert split_foreign(FOREIGN + pattern) == (True, pattern)


def test_what_is_no_list_of_patterns_stays_as_it_is() -> None:
    for tree in (
        {},
        {"data": None},
        {"data": 5},
        {"data": ["train"]},
        {"data": {"train": 3}},
        {"run": {"seed": 1}},
    ):
        before = dict(tree)
        mark_foreign(tree)
        assert tree == before
    assert split_foreign("a.tar") == (False, "a.tar")
