"""The layers of a diffusion transformer except its experts (DiT, arXiv 2212.09748).

all_to_all: rows between ranks, with gradients.
attention: self-attention, cross-attention to a caption, and joint attention of both.
embeddings: of positions, of the timestep and of picture sizes.
feed_forward: the dense feed-forward network, which is also the model of an expert.
generator: random generators that a name determines, and torch's own initialization.
modulation: shifts, scales and gates from time and condition, of a block alone or shared.
number_formats: the number formats that settings name.
norms: LayerNorm without weights, and adaLN's shift and scale.
patches: images to tokens and back.
rope: rotary positions in two axes.
sequence: the tokens of a sample over several ranks, and their heads.
"""
