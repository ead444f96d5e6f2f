"""The network and what surrounds it.

block: one block of the transformer.
build: the blocks of a transformer, by its settings.
compilation: torch.compile of the blocks or of parts of them.
condition: what the network sees beside noisy image and time.
denoiser: what is trained: the transformer and, where it learns along, the text encoder.
initialization: the first weights, from the seed alone.
joint_block: one block in which image and text attend together.
matrices: the matrices of the hidden layers, which an optimizer of matrices updates.
networks: what is trained and what surrounds it.
text: the streams of several text encoders, made one.
transformer: the DiffMoE transformer.
"""
