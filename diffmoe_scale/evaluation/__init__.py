"""Scores of a trained model.

capacity_sweep.py  quality and cost at several capacities, one point after another
captions.py        whether a model was trained on captions of the scenes that the suites ask for
scene_scores.py    the six suites of scenes over one model: scores, chance, and what the experts did
results.py         what these found, and its form in RUN/evaluation.json
sweep_prompts.py   the prompts of a sweep, and those of its calibrations
sweep_results.py   what a sweep of capacities found, and its file
harness/           many checkpoints by many suites
suites/            suites of prompts
judge/             models that answer questions about pictures
metrics/           FID and other metrics of pictures
"""
