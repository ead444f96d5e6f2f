"""Metrics of pictures such as FID: streamed, in float64, mergeable over ranks.

scorer.py           metrics of a stream of pictures: what other code calls
measures.py         the metrics by name, and what must be collected for each
result.py           a metric's value, with what it depends on
compute.py          values from what was collected
statistics.py       what is collected of a set of pictures under one network
moments.py          mean and covariance, and the Frechet distance
rows.py             the features of all pictures
inception_score.py  the Inception Score
caption_score.py    the CLIP score
mmd.py              KID and CMMD
fidelity.py         torch-fidelity: Inception, precision and recall
timm_network.py     features of networks of timm, such as DINOv2
clip_network.py     features of networks of open_clip
backbone.py         what a frozen network is to metrics
backbones.py        the networks that the settings name
weights.py          weight files: present, unchanged, without code
resize.py           how pictures are brought to a network's size
pictures.py         pictures on disk as a stream
archive.py          archives of numpy, whose damage is a sentence
adm_statistics.py   what an ADM reference file holds
collect.py          what is collected of pictures on disk, and its cache
reference.py        what samples are compared with
"""
