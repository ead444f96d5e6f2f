"""The layers of a diffusion transformer except its experts (DiT, arXiv 2212.09748).

attention: self-attention, and cross-attention to a caption.
embeddings: of positions, of the timestep and of picture sizes.
feed_forward: the dense feed-forward network, which is also the model of an expert.
generator: random generators that a name determines, and torch's own initialization.
norms: LayerNorm without weights, and adaLN's shift and scale.
patches: images to tokens and back.
"""
