"""The library behind tools/prepare_shards.py, inspect_data.py and cache_features.py.

From pictures with captions to shards:
options.py     arguments of the preparation
shards.py      the preparation: list, judge, write; what it says at its end
prepared.py    what a preparation made, for the terminal and for shards.json
entries.py     the pictures of an input: folder, tar, table, parquet; what else was found there
walk.py        the files of a folder: links, loops, hidden files
pairs.py       which text belongs to which picture, by their names
tars.py        pictures and texts in a tar file
tables.py      tables of paths and captions as text: .csv, .tsv, .jsonl
parquet.py     tables in parquet files
classes.py     labels of pictures from the folders that they lie in
place.py       where a picture and its texts lie
texts.py       what is known about a picture: its captions by one rule, its record
images.py      formats and their suffixes, what training does not see, smaller copies
judge.py       which pictures are kept, and why others are not
duplicates.py  pictures that look the same
keys.py        keys of samples from names
losses.py      what was lost or dealt with: counts and names by reason
sources.py     what a set was made from: a change of any file is seen and named
resumable.py   commands that go on where they were stopped
publish.py     sets that appear complete or not at all

From shards to features, and a look at shards:
features.py    the preparation of features: check, write the share of a process, publish
encoders.py    the networks that features are computed by
encoding.py    from shards of pictures to shards of features
space.py       space on disks
survey.py      what a set of shards holds
facts.py       what a survey found, as names and values
"""
