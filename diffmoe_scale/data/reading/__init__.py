"""From shards to batches.

build.py       a reader from the config
reader.py      batches of one rank from any position on
conditions.py  whether the data has captions or labels at all
source.py      a sample by its number
decoder.py     the content of its member: a picture, or cached features
files.py       bytes and captions of shards by offset
captions.py    which captions a sample has
pictures.py    decoding, cutting and scaling of pictures
batch.py       one micro-batch; kinds of failures and notes
judge.py       what was wrong with samples: counted, logged, limited
worker.py      reading processes
"""
