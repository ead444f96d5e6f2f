"""Settings of the whole test run."""

import signal

import torch

# Tiny models: threads would only wait for each other, and for the ranks that tests start.
torch.set_num_threads(1)
# A shell ignores SIGINT for what it starts in the background, and programs that the tests start would inherit
# that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
