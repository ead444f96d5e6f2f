"""Facts of a survey, by hand."""

from collections import Counter

import numpy as np

from diffmoe_scale.config.load import load_config
from diffmoe_scale.prepare.facts import Lengths, list_facts, list_troubles
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.survey import Survey


def survey(**others: object) -> Survey:
    """200 samples, of which 10 were read, 2 without a caption."""
    base: dict[str, object] = {
        "samples": 200,
        "shards": 2,
        "size_bytes": 3_000_000,
        "lost": Losses(),
        "duplicate_keys": 0,
        "features": None,
        "looked": 10,
        "uncaptioned": 2,
        "captions": ["a b", "a b c d"] * 4,
    }
    return Survey(**base | others)  # type: ignore[arg-type]  # of tests


def facts(found: Survey, *settings: str) -> dict[str, str]:
    lengths = Lengths([len(caption.split()) for caption in found.captions], "words")
    return dict(list_facts(found, lengths, load_config(None, settings) if settings else None))


def test_words_of_an_epoch_are_those_of_the_captioned_share() -> None:
    # 8 of 10 have a caption of 3 words on average: 200 * 0.8 * 3.
    assert facts(survey())["words an epoch"] == "480"
    assert facts(survey())["captions a sample"] == "1.00"
    assert facts(survey())["samples"] == "200 in 2 shards, 3.0 MB; 10 read"


def test_a_spread_names_the_ends_and_what_lies_within_nine_tenths() -> None:
    widths = list(range(101))
    heights = [50] * 101
    answer = facts(survey(widths=widths, heights=heights))
    assert answer["width"] == "0 to 100, median 50, 90 % within 5 to 95"
    assert answer["width / height"].startswith("0 to 2, median 1,")
    assert facts(survey())["height"] == "none"


def test_image_tokens_are_of_all_samples_at_the_size_of_the_config() -> None:
    answer = facts(survey(), "model.image_size=32", "model.patch_size=4")
    assert answer["image tokens an epoch"] == f"{200 * 8 * 8:,}"


def test_of_many_classes_the_most_and_the_least_frequent_are_named() -> None:
    counts = Counter({label: 100 - label for label in range(13)})
    answer = facts(survey(labels=counts, class_names={0: "cat"}))
    shown = answer["samples by class"].split(", ")
    assert shown[0] == "0 cat: 100" and shown[6] == "..." and len(shown) == 13
    assert shown[1] == "1: 99" and shown[-1] == "12: 88" and "6: 94" not in shown
    assert answer["classes"] == "13 labels, 0 to 12"
    few = facts(survey(labels=Counter({1: 5, 0: 5, 2: 9})))["samples by class"]
    assert few == "2: 9, 0: 5, 1: 5"


def test_every_kind_of_trouble_is_named_below_its_title() -> None:
    kinds = ("lost", "broken", "texts", "unseen")
    found = survey()
    for kind in kinds:
        losses = Losses()
        losses.add("reason", f"name of {kind}")
        setattr(found, kind, losses)
    found.left_out["shards.json"] = found.lost
    lines = list_troubles(found)
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "broken tar members:",
        "broken samples:",
        "odd texts:",
        "not seen in training:",
        "left out by shards.json:",
    ]
    assert [line.strip() for line in lines if "name of" in line] == [
        *(f"name of {kind}" for kind in kinds),
        "name of lost",
    ]
    assert list_troubles(survey()) == []


def test_lengths_say_their_unit_shortly() -> None:
    assert Lengths(np.arange(3), "tokens (at most 24)").short_unit == "tokens"  # type: ignore[arg-type]
