"""Training stack for text-to-image diffusion transformers with dynamic mixture-of-experts layers
(DiffMoE, arXiv 2503.14487).

Tensor legend: a name such as `x_BND` ends in a letter for each dimension.
B samples of this rank, N tokens a sample, S = B * N tokens of this rank, D width, E experts in all,
e experts of this rank, F expert width, K tokens that an expert takes, R rows that an expert rank computes,
L text tokens, T text width, C H W channels, height and width of a picture or its latents.

config/        settings: a file a section, YAML, command line, help
cli/           what all commands share
parallel/      ranks and their process groups
scenes/        the embedded data set of coloured shapes
nn/            layers of a transformer
encoders/      text and pictures to features
diffusion/     noising, losses and what a prediction says of data and noise
telemetry/     logs, metrics, trackers
checkpoint/    checkpoints and weights on disk
moe/           layers of experts and their routers
data/          shards, the order of samples, reading
model/         the network and what surrounds it
prepare/       shards and features made of pictures and captions
plan/          what a model costs
sampling/      pictures from trained networks
convert/       weights of other formats and shapes
train/         a run
evaluation/    scores of trained models
report/        the page about a run
bench/         measurements of speed and memory
study/         variants trained from several seeds and compared
page/          a page that draws from a trained model
doctor/        the nodes of a cluster compared before a job
pretrain.py, sample.py, evaluate.py    commands; __main__.py lists all
files.py, lock.py, recent.py, unicode.py, words.py, json_text.py    small things that every folder may use

For notebooks: `load_pipeline` and `generate` (docs/python-api.md).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffmoe_scale.sampling.generate import generate
    from diffmoe_scale.sampling.loading import load_pipeline

__version__ = "0.1.0"

__all__ = ["__version__", "generate", "load_pipeline"]


def __getattr__(name: str) -> object:
    """`generate` and `load_pipeline` load torch, so they are imported when they are first used."""
    if name in ("generate", "load_pipeline"):
        from diffmoe_scale.telemetry.log import silence_packages

        silence_packages()
    match name:
        case "generate":
            from diffmoe_scale.sampling.generate import generate

            return generate
        case "load_pipeline":
            from diffmoe_scale.sampling.loading import load_pipeline

            return load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
