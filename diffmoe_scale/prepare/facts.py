"""What a survey found, as names and values for a terminal and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.source import FeatureSource
from diffmoe_scale.encoders.autoencoder.build import latent_format
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.prepare.options import Tell
from diffmoe_scale.prepare.survey import Survey
from diffmoe_scale.words import counted

SHOWN_CLASSES = 6
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Lengths:
    """Length of each caption, and in what."""

    values: Sequence[int]
    unit: str

    @property
    def short_unit(self) -> str:
        return self.unit.split(" (")[0]


def caption_lengths(survey: Survey, config: Config | None, *, tell: Tell = print) -> Lengths:
    """In tokens where the features or the config say which, else in words."""
    if survey.text_tokens:
        return Lengths(survey.text_tokens, "stored tokens")
    words = Lengths([len(caption.split()) for caption in survey.captions], "words")
    if config is None or config.model.conditioning != "text":
        return words
    tokenizer = RunDirectory(Path(config.run.directory)).tokenizer
    encoders = config.text.listed()
    if config.text.trained is not None and not tokenizer.is_file():
        tell(f"{tokenizer} does not exist (the run makes it): captions are counted in words")
        return words
    # The one that reads most, where there are several.
    most = max(encoder.max_tokens for encoder in encoders)
    number = [encoder.max_tokens for encoder in encoders].index(most)
    encoder = build_text_encoder(config.text, number, tokenizer_path=tokenizer)
    values = [int(encoder.tokenize([caption]).shape[1]) for caption in survey.captions]
    return Lengths(values, f"tokens (at most {most})")


def list_facts(survey: Survey, lengths: Lengths, config: Config | None) -> Facts:
    """Names and values."""
    captioned = survey.looked - survey.uncaptioned
    facts = [
        (
            "samples",
            f"{survey.samples:,} in {counted(survey.shards, 'shard', ',')}, "
            f"{survey.size_bytes / 1e6:,.1f} MB; {survey.looked:,} read",
        ),
        ("members", ", ".join(f".{suffix} {count:,}" for suffix, count in survey.members.most_common())),
        ("broken tar members", _counts(survey.lost.counts)),
        ("broken samples", _counts(survey.broken.counts)),
        ("without caption", f"{survey.uncaptioned:,}"),
        ("odd texts", _counts(survey.texts.counts)),
        ("not seen in training", _counts(survey.unseen.counts)),
        ("duplicate keys", f"{survey.duplicate_keys:,}"),
        ("width", _spread(survey.widths)),
        ("height", _spread(survey.heights)),
        ("width / height", _spread(survey.aspects())),
        (f"caption {lengths.short_unit}", _spread(lengths.values)),
        ("captions a sample", f"{len(survey.captions) / max(1, captioned):.2f}"),
        *_class_facts(survey),
        *((f"left out by {name}", losses.summary()) for name, losses in survey.left_out.items()),
    ]
    if survey.features is not None:
        facts.append(("features", _describe_features(survey.features.source)))
    if config is not None:
        _, factor = latent_format(config.autoencoder)
        images = survey.samples * (config.model.image_size // factor // config.model.patch_size) ** 2
        facts.append(("image tokens an epoch", f"{images:,}"))
    if lengths.values:
        total = np.mean(lengths.values) * survey.samples * captioned / survey.looked
        facts.append((f"{lengths.short_unit} an epoch", f"{total:,.0f}"))
    return facts


def _class_facts(survey: Survey) -> Facts:
    """Of sets with labels: how many, and the samples of each, or of the most and the least frequent ones."""
    if not survey.labels:
        return []
    named = [
        f"{label} {survey.class_names.get(label, '')}".strip() + f": {count:,}"
        for label, count in sorted(survey.labels.items(), key=lambda entry: (-entry[1], entry[0]))
    ]
    if len(named) > 2 * SHOWN_CLASSES:
        named = [*named[:SHOWN_CLASSES], "...", *named[-SHOWN_CLASSES:]]
    labels = sorted(survey.labels)
    return [
        ("classes", f"{counted(len(labels), 'label', ',')}, {labels[0]} to {labels[-1]}"),
        ("samples a class", _spread(list(survey.labels.values()))),
        ("samples by class", ", ".join(named)),
    ]


def list_troubles(survey: Survey) -> list[str]:
    """Lines that name what the counts of the facts are of."""
    groups = {
        "broken tar members": survey.lost,
        "broken samples": survey.broken,
        "odd texts": survey.texts,
        "not seen in training": survey.unseen,
        **{f"left out by {name}": losses for name, losses in survey.left_out.items()},
    }
    return [
        line
        for title, losses in groups.items()
        if losses.counts
        for line in [f"{title}:", *(f"  {line}" for line in losses.lines())]
    ]


def _describe_features(source: FeatureSource) -> str:
    shapes = (
        f"aspects {', '.join(f'{aspect:g}' for aspect in source.aspects)}" if source.aspects else "squares"
    )
    latents = (
        f"{counted(source.channels, 'channel')}, 1/{source.factor} of {source.image_size} pixels, {shapes}"
    )
    text = source.text or "not stored"
    return f"{source.precision}, latents of {latents}, {counted(source.num_views, 'view')}, text {text}"


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counted.items()) or "none"


def _spread(numbers: Sequence[float]) -> str:
    if not len(numbers):
        return "none"
    low, middle, high = np.percentile(numbers, [5, 50, 95])
    return (
        f"{min(numbers):.4g} to {max(numbers):.4g}, median {middle:.4g}, 90 % within {low:.4g} to {high:.4g}"
    )
