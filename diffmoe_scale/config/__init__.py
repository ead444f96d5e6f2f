"""All settings of a run: a frozen dataclass a section, YAML and command line, help, a model's identity.

schema.py         the root of the sections and the checks that cross them
section.py        base of the sections: ranges of numbers, paths, what a model's identity is free of
run.py            length and seed of a run, checkpoints, bad steps
data.py           shards, captions, aspect-ratio buckets
autoencoder.py    pictures to latents
text.py           the text encoders
model.py          the transformer
moe.py            the mixture-of-experts layers
routers.py        what each router can be asked for
diffusion.py      path, prediction, loss, times
alignment.py      representation alignment with a frozen encoder of pictures
optimizer.py      AdamW or Muon, the schedule, the weight average
parallel.py       how work is split over ranks
sampling.py       how pictures are drawn
telemetry.py      metrics, validation, trackers
evaluation.py     an evaluation of many checkpoints: suites, judge, what is compared
study.py          a study of variants with several seeds each
metrics.py        FID and other metrics of pictures
alarms.py         when a run's figures are said to be wrong
load.py           a Config from a file and `key.sub=value` words, and back to YAML
yaml_file.py      the text of a file or of a value to a tree, refusing what could not be meant
origin.py         where a text came from: a run's own config.yaml starts no command
keys.py           unknown keys, with the nearest right one
choices.py        settings that follow from others unless they are named
effect.py         settings that change nothing beside the others
help.py           the text of `--help`
identity.py       the settings that decide what a model's weights mean
run_directory.py  the places of a run directory, and its lock
check.py          one sentence for every wrong setting
"""
