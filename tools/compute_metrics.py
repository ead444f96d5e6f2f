"""`python tools/compute_metrics.py SAMPLES --reference VIRTUAL_imagenet256_labeled.npz --metrics fid sfid is
precision recall --inception weights-inception-2015-12-05-6726825d.pth`: score pictures on disk.

SAMPLES is a folder of pictures or a .npz of `sample`. Nothing is downloaded; pictures are read once, batch by
batch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.cli.command import command_parser, output_file, run_command, user_path
from diffmoe_scale.config.metrics import MetricsConfig

DIT = ("fid", "sfid", "is", "precision", "recall")
PAIR = ("ARCHITECTURE", "FILE")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("compute_metrics", __doc__ or "")
    add = parser.add_argument
    add("samples", type=user_path, help="folder of pictures, or .npz with arr_0 as uint8 [N, H, W, 3]")
    add("--reference", type=user_path, help="folder or .npz to compare with; ADM's own statistics are used")
    text = (
        "metrics (default: those of DiT): %(default)s, kid, cmmd, clip_score, fd:timm, kid:timm, fd:clip ..."
    )
    add("--metrics", nargs="+", metavar="NAME", default=list(DIT), help=text)
    add("--inception", type=user_path, metavar="FILE", help="weight file of Inception")
    add(
        "--timm", nargs=2, metavar=PAIR, help="network of timm, as vit_large_patch14_dinov2 model.safetensors"
    )
    add("--timm-size", type=int, default=0, help="pixels at which it reads (default: its own, DINOv2: 224)")
    text = "network of open_clip, as ViT-L-14-336 FILE or local-dir FOLDER"
    add("--clip", nargs=2, metavar=PAIR, help=text)
    text = "how the SHA-256 of a weight file must begin: inception=6726825d, timm=..., clip=..."
    add("--checksum", nargs="+", metavar="NETWORK=HEX", default=[], help=text)
    add("--cache", type=user_path, metavar="FOLDER", help="keeps what was computed of the reference")
    add("--batch", type=int, default=64, help="pictures that a network sees at once (default: 64)")
    add("--any-size", action="store_true", help="compare with reference pictures of another size")
    add("--output", type=output_file, metavar="FILE", help="JSON file of the values")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    config = read_config(parsed)
    # Imported here: `--help` and wrong arguments answer at once.
    import torch

    from diffmoe_scale.evaluation.metrics.measures import parse_measures
    from diffmoe_scale.evaluation.metrics.pictures import open_pictures
    from diffmoe_scale.evaluation.metrics.reference import reference_size
    from diffmoe_scale.evaluation.metrics.scorer import check_size, load_metrics
    from diffmoe_scale.files import replace_file

    has_captions = any(measure.need == "captions" for measure in parse_measures(config.names))
    captions = {"read_caption": read_caption} if has_captions else {}
    source = open_pictures(parsed.samples, **captions)
    if config.reference:  # before hours of work
        check_size(source.size, reference_size(Path(config.reference)), config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = load_metrics(config, device).score(source)
    for value in values:
        print(value)
    if parsed.output is not None:
        replace_file(parsed.output, json.dumps([value.as_tree() for value in values], indent=1).encode())


def read_config(parsed: argparse.Namespace) -> MetricsConfig:
    """Raises: ValueError for wrong settings."""
    checksums = {}
    for text in parsed.checksum:
        name, equals, digits = text.partition("=")
        if name not in ("inception", "timm", "clip") or not equals:
            raise ValueError(f"--checksum {text}; expected inception=HEX, timm=HEX or clip=HEX")
        checksums[f"{name}_checksum"] = digits
    timm_architecture, timm_weights = parsed.timm or ("", "")
    clip_architecture, clip_weights = parsed.clip or ("", "")
    return MetricsConfig(
        names=tuple(parsed.metrics),
        reference=str(parsed.reference or ""),
        inception=str(parsed.inception or ""),
        timm_architecture=timm_architecture,
        timm_weights=timm_weights,
        timm_size=parsed.timm_size,
        clip_architecture=clip_architecture,
        clip_weights=clip_weights,
        cache=str(parsed.cache or ""),
        batch=parsed.batch,
        any_size=parsed.any_size,
        **checksums,
    )


def read_caption(file: Path) -> str | None:
    """The prompt that `sample` wrote into a picture's file."""
    from diffmoe_scale.sampling.picture_files import SUFFIXES, read_picture_metadata

    if file.suffix.lower() not in SUFFIXES:
        return None
    prompt = read_picture_metadata(file).get("prompt")
    return prompt if isinstance(prompt, str) else None


if __name__ == "__main__":
    sys.exit(main())
