"""Settings of the whole test run."""

import torch

# Tiny models: threads would only wait for each other, and for the ranks that tests start.
torch.set_num_threads(1)
