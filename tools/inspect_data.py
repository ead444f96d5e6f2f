"""Shows what shards hold, pictures or features: counts, sizes, captions, samples, and what is broken; as text
and as one HTML page."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffmoe_scale.config.check import require
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import to_unit_range
from diffmoe_scale.data.shards.index import ShardCatalog, expand_patterns
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.prepare.survey import Survey, survey_shards
from diffmoe_scale.report import html as page
from diffmoe_scale.report.plots import plot_histograms
from diffmoe_scale.telemetry.picture_grid import save_image_grid

NAMED = 20
GRID_COLUMNS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="inspect_data", description=__doc__)
    add = parser.add_argument
    add(
        "--input",
        action="append",
        required=True,
        help="shards: a path, glob or brace list; may be given several times",
    )
    add(
        "--config",
        type=Path,
        help="YAML file of a training: counts tokens by its tokenizer, autoencoder and patches (default: counts words)",
    )
    add(
        "--samples",
        type=int,
        default=2000,
        help="samples to read, spread evenly over the shards (default: 2000; 0: all)",
    )
    add("--html", type=Path, help="page to write (default: none)")
    add("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    parsed = parser.parse_intermixed_args(arguments)
    try:
        require(parsed.samples >= 0, "--samples", parsed.samples, "0 (all) or more")
        require(
            parsed.config is not None or not parsed.settings,
            "settings",
            parsed.settings,
            "none without --config",
        )
        config = load_config(parsed.config, parsed.settings) if parsed.config else None
        catalog = ShardCatalog(expand_patterns(parsed.input))
        survey, steps = survey_shards(catalog, limit=parsed.samples or sum(catalog.counts))
        for _ in tqdm(
            steps, total=min(parsed.samples or survey.samples, survey.samples), unit="sample", disable=None
        ):
            pass
        lengths, unit = caption_lengths(survey, config)
        facts = list_facts(survey, lengths, unit, config)
        print("\n".join(f"{name:<24}{value}" for name, value in facts))
        if survey.broken_keys:
            print("\n  ".join(["broken:", *survey.broken_keys[:NAMED]]))
        if parsed.html:
            parsed.html.parent.mkdir(parents=True, exist_ok=True)
            parsed.html.write_text(write_page(survey, facts, lengths, unit, " ".join(parsed.input)))
            print(f"page: {parsed.html}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def caption_lengths(survey: Survey, config: Config | None) -> tuple[list[int], str]:
    """Length of each caption, and in what."""
    if survey.text_tokens:
        return survey.text_tokens, "stored tokens"
    if config is None or config.model.conditioning != "text":
        return [len(caption.split()) for caption in survey.captions], "words"
    tokenizer = RunDirectory(Path(config.run.directory)).tokenizer
    if config.text.kind == "sentencepiece" and not tokenizer.is_file():
        print(f"{tokenizer} does not exist (the run makes it): captions are counted in words")
        return [len(caption.split()) for caption in survey.captions], "words"
    encoder = build_text_encoder(config.text, tokenizer_path=tokenizer)
    return [
        int(encoder.tokenize([caption]).shape[1]) for caption in survey.captions
    ], f"tokens (at most {config.text.max_tokens})"


def list_facts(
    survey: Survey, lengths: Sequence[int], unit: str, config: Config | None
) -> list[tuple[str, str]]:
    """Names and values, for the terminal and the page."""
    facts = [
        (
            "samples",
            f"{survey.samples:,} in {survey.shards:,} shards, {survey.size_bytes / 1e6:,.1f} MB; {survey.looked:,} read",
        ),
        ("members", ", ".join(f".{suffix} {count:,}" for suffix, count in survey.members.most_common())),
        ("broken tar members", _counts(survey.lost)),
        ("broken samples", _counts(survey.broken)),
        ("without caption", f"{survey.uncaptioned:,}"),
        ("duplicate keys", f"{survey.duplicate_keys:,}"),
        ("width", _spread(survey.widths)),
        ("height", _spread(survey.heights)),
        ("width / height", _spread(_aspects(survey))),
        (f"caption {unit.split(' (')[0]}", _spread(lengths)),
        ("captions a sample", f"{len(survey.captions) / max(1, survey.looked - survey.uncaptioned):.2f}"),
    ]
    if survey.features is not None:
        source = survey.features.source
        shapes = (
            f"aspects {', '.join(f'{aspect:g}' for aspect in source.aspects)}"
            if source.aspects
            else "squares"
        )
        latents = f"{source.channels} channels, 1/{source.factor} of {source.image_size} pixels, {shapes}"
        facts.append(
            (
                "features",
                f"{source.precision}, latents of {latents}, {source.num_views} view(s), text {source.text or 'not stored'}",
            )
        )
    if config is not None:
        factor = build_autoencoder(config.autoencoder, device=torch.device("cpu")).factor
        images = survey.samples * (config.model.image_size // factor // config.model.patch_size) ** 2
        facts.append(("image tokens an epoch", f"{images:,}"))
    if lengths:
        captioned = 1 - survey.uncaptioned / survey.looked
        facts.append(
            (f"{unit.split(' (')[0]} an epoch", f"{np.mean(lengths) * survey.samples * captioned:,.0f}")
        )
    return facts


def _aspects(survey: Survey) -> list[float]:
    return [width / height for width, height in zip(survey.widths, survey.heights, strict=True)]


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counted.items()) or "none"


def _spread(numbers: Sequence[float]) -> str:
    if not len(numbers):
        return "none"
    low, middle, high = np.percentile(numbers, [5, 50, 95])
    return (
        f"{min(numbers):.4g} to {max(numbers):.4g}, median {middle:.4g}, 90 % within {low:.4g} to {high:.4g}"
    )


def write_page(
    survey: Survey, facts: Sequence[tuple[str, str]], lengths: Sequence[int], unit: str, title: str
) -> str:
    histograms = plot_histograms(
        {
            "width": survey.widths,
            "height": survey.heights,
            "width / height": _aspects(survey),
            f"caption length in {unit}": lengths,
        }
    )
    parts = [
        page.element("h1", title),
        page.element(
            "p",
            f"From {survey.looked:,} of {survey.samples:,} samples, spread evenly over the shards.",
            kind="note",
        ),
        page.table(facts),
        page.element("h2", "Sizes and captions"),
        page.figure(histograms.encode(), kind="svg", caption="numbers of samples (of captions)"),
    ]
    if survey.shown:
        parts += [
            page.element("h2", "Samples"),
            page.figure(draw_samples(survey), kind="png", caption="the first caption of each"),
        ]
    if survey.broken_keys:
        parts += [page.element("h2", "Broken"), page.element("pre", "\n".join(survey.broken_keys[:NAMED]))]
    return page.page(title, page.join(parts))


def draw_samples(survey: Survey) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        save_image_grid(
            to_unit_range(torch.from_numpy(np.stack([pixels for pixels, _ in survey.shown]))),
            [caption for _, caption in survey.shown],
            path,
            GRID_COLUMNS,
        )
        return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
