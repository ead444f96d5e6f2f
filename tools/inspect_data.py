"""Shows what shards hold, pictures or features: counts, sizes, captions, samples, and what is broken; as
text and as one HTML page."""

import argparse
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.command import command_parser, output_file, run_command, user_path
from diffmoe_scale.config.check import require

EXAMPLES = """examples:
  python tools/inspect_data.py --input 'shards/*.tar' --html data.html
  python tools/inspect_data.py --input 'shards/*.tar' --samples 0 --config configs/captions_64.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("inspect_data", __doc__ or "", epilog=EXAMPLES)
    add = parser.add_argument
    text = "shards: a path, glob or brace list; may be given several times"
    add("--input", action="append", required=True, help=text)
    text = (
        "YAML file of a training: counts tokens by its tokenizer, autoencoder and patches, and takes "
        "captions by its data.caption_weights (default: counts words)"
    )
    add("--config", type=user_path, help=text)
    text = "samples to read, spread evenly over the shards (default: 2000; 0: all)"
    add("--samples", type=int, default=2000, help=text)
    add("--html", type=output_file, help="page to write (default: none)")
    add("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    return run_command(parser, _inspect, arguments)


def _inspect(parsed: argparse.Namespace) -> None:
    from tqdm import tqdm

    from diffmoe_scale.config.data import DataConfig
    from diffmoe_scale.config.load import load_config
    from diffmoe_scale.data.shards.catalog import ShardCatalog
    from diffmoe_scale.data.shards.patterns import expand_patterns
    from diffmoe_scale.files import replace_file
    from diffmoe_scale.prepare.facts import caption_lengths, list_facts, list_troubles
    from diffmoe_scale.prepare.survey import survey_shards
    from diffmoe_scale.report.data_set import data_set_page

    require(parsed.samples >= 0, "--samples", parsed.samples, "0 (all) or more")
    has_use = parsed.config is not None or not parsed.settings
    require(has_use, "settings", parsed.settings, "none without --config")
    config = load_config(parsed.config, parsed.settings) if parsed.config else None
    catalog = ShardCatalog(expand_patterns(parsed.input))
    limit = min(parsed.samples or sum(catalog.counts), sum(catalog.counts))
    weights = (DataConfig() if config is None else config.data).caption_weights
    survey, steps = survey_shards(catalog, limit=limit, caption_weights=weights)
    for _ in tqdm(steps, total=limit, unit="sample", disable=None):
        pass
    lengths = caption_lengths(survey, config)
    facts, troubles = list_facts(survey, lengths, config), list_troubles(survey)
    print("\n".join(f"{name:<24}{value}" for name, value in facts))
    print("\n".join(troubles), end="\n" if troubles else "")
    if parsed.html:
        parsed.html.parent.mkdir(parents=True, exist_ok=True)
        title = " ".join(parsed.input)
        page = data_set_page(survey, facts, lengths, troubles=troubles, title=title)
        replace_file(parsed.html, page.encode("utf-8", "replace"))
        print(f"page: {parsed.html}")


if __name__ == "__main__":
    sys.exit(main())
