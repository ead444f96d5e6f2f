"""Pictures from trained networks.

batch.py          one batch of pictures: what is asked for, the noise it starts from, the sampler, the decoder
calibration.py    the constant threshold that gives a wanted capacity
euler.py          from noise to data by first-order steps
generate.py       pictures as a stream, and `generate` for notebooks
guidance.py       the network as samplers call it, with guidance
loading.py        a trained model from its run directory
loads.py          how much the experts worked, by the time of the network's calls
output.py         pictures as they are drawn to single files and one grid
picture_files.py  files that say how they were made, under free and safe names
prompts.py        files of prompts, and the pictures that they ask for
schedule.py       the times at which a sampler calls the network
"""
