"""Captions to features.

build: the encoder that a config names.
clip: a frozen open_clip text tower.
encoder: what every text encoder is.
features: what the network sees of captions, a stream from each encoder.
streams: all encoders of a run.
tokenizer: captions to token ids; the sentencepiece model of a run.
trained: a small encoder that is trained along.
"""
