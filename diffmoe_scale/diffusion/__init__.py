"""The diffusion process: what is done to data in training, and what the network's output says of it.

ddpm: 1000 linear steps with learned sigma.
flow: rectified flow.
noise: random numbers of a sample.
objective: the interface of both, and the one that a config names.
"""
