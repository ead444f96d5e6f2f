"""Scores of a trained model.

harness.py  all suites over one model: pictures, scores, chance, and what the experts did
results.py  what an evaluation found, and its form in RUN/evaluation.json
"""
