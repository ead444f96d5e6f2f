"""Scores of a trained model.

captions.py  whether a model was trained on captions of the scenes that the suites ask for
harness.py   all suites over one model: pictures, scores, chance, and what the experts did
metrics/     FID and other metrics of pictures
results.py   what an evaluation found, and its form in RUN/evaluation.json
"""
