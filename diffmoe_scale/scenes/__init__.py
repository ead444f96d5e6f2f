"""The embedded data set: pictures of coloured shapes, their captions, and who checks them.

checker.py  which shapes a picture shows, and whether that is what was asked
scenes.py   scenes by number and seed, with captions and claims
shapes.py   shapes and colours, and how they are drawn
suites.py   six suites of prompts after GenEval, and their scores
"""
