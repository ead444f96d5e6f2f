"""Pictures to latents and back.

build: the interface of an autoencoder, the one that a config names, and the picture sizes that fit it.
pixels: pictures as they are.
diffusers: a network of diffusers, loaded from a local folder.
folder: the config.json of such a folder.
convention: how each of diffusers' classes is called, and how its latents are shifted and scaled.
tiles: large pictures decoded in overlapping squares.
"""
