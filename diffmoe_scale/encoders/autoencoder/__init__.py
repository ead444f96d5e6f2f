"""Pictures to latents and back.

build: the interface of an autoencoder, and the one that a config names.
diffusers: diffusers' AutoencoderKL.
pixels: pictures as they are.
"""
