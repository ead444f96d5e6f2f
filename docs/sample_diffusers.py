"""Draws pictures with a folder that `convert_checkpoint RUN FOLDER --to diffusers` wrote.

It needs torch, diffusers, transformers, safetensors and sentencepiece, and nothing of the program that
trained the model:

    python sample_diffusers.py FOLDER pictures "a red circle" "three green triangles" --seed 0
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("output", type=Path, help="a folder for 000.png, 001.png, ... and pictures.pt")
parser.add_argument("prompts", nargs="+", help="captions, or the numbers of classes")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument(
    "--selection", default="", help="threshold, threshold_count, interval, static; or the run's"
)
parser.add_argument("--gamma", type=float, default=0.5, help="for interval")
parser.add_argument("--capacity", type=float, default=0.0, help="for static; 0 is that of training")
parser.add_argument("--latents", type=Path, help="noise to start from, [B, C, H, W] as torch.save writes it")
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
pipeline = DiffusionPipeline.from_pretrained(options.folder, trust_remote_code=True, use_safetensors=True)
pipeline.to(device)
is_class = pipeline.transformer.config.num_classes > 0
rule = {"selection": options.selection, "gamma": options.gamma, "capacity": options.capacity}
images = pipeline(
    [int(prompt) for prompt in options.prompts] if is_class else options.prompts,
    seed=options.seed,
    latents=None if options.latents is None else torch.load(options.latents, weights_only=True),
    output_type="pt",
    **(rule if options.selection else {}),
).images

options.output.mkdir(parents=True, exist_ok=True)
torch.save(images.cpu(), options.output / "pictures.pt")
for number, picture in enumerate(
    pipeline.image_processor.numpy_to_pil(images.permute(0, 2, 3, 1).cpu().numpy())
):
    picture.save(options.output / f"{number:03d}.png")
