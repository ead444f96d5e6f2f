"""Who this process is among its peers, and the process groups.

launcher.py       the launcher's environment variables, checked; imports no torch
context.py        rank and process groups of this process
device.py         its device, threads and memory
bucket.py         how many gradients are sent at once
expert_groups.py  which parameters are experts, for DeepSpeed
slice.py          a part of a tensor that is spread over ranks
connections.py    hosts that went silent: their connections end
peers.py          which ranks were lost, when a collective broke
waiting.py        waiting for ranks that have other work to do
"""
