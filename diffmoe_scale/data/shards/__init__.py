"""Tar shards: where each sample lies, on disks and behind URLs.

archive.py   members of a tar file that may be damaged
index.py     the samples of one shard, by one scan over its headers
sidecar.py   an index in a file beside its shard
catalog.py   all shards of a data set
record.py    the shards of a run's last start, compared with those of this one
patterns.py  paths, globs, brace lists and URLs to shard files
remote.py    copies of shards that are URLs
"""
