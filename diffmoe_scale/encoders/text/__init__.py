"""Captions to features.

architecture: networks of transformers as encoders, up to a chosen layer.
build: the encoders that a config names.
clip: a frozen open_clip text tower.
clip_files: its weight files, and what its description says.
encoder: what every text encoder is.
folder: what a local folder of transformers must hold.
frozen: an encoder whose weights are read when they are needed.
pretrained: a frozen T5 or decoder model of transformers.
features: what the network sees of captions, a stream from each encoder.
streams: all encoders of a run.
tokenizer: captions to token ids; the sentencepiece model of a run.
trained: a small encoder that is trained along.
vocabulary: the tokenizer of a language model, from its own files.
weights: safetensors files, mapped into memory, into a network on meta.
"""
