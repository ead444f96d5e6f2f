"""What encodes before the network: captions to features, pictures to latents.

fingerprint: a short hash of frozen weights, kept beside them.
autoencoder/: pictures to latents and back.
text/: captions to features.
vision/: pictures to the features that a network is aligned with.
"""
