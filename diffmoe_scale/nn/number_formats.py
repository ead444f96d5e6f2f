"""The number formats that settings name."""

import torch

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
