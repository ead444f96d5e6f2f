"""Pictures from trained networks.

adams_bashforth.py  sampler: second-order steps of one call
ancestral.py        sampler: DDPM's own random steps
batch.py            one batch of pictures: what is asked for, its noise, the sampler, the decoder
build.py            the sampler that the settings name
calibration.py      the constant threshold that gives a wanted capacity
ddim.py             sampler: DDPM's steps over fewer times
dopri5.py           sampler: adaptive steps of order 5
dpm_solver.py       sampler: DPM-Solver++ 2M
euler.py            sampler: first-order steps
generate.py         pictures as a stream, and `generate` for notebooks
guidance.py         the network as samplers call it, with guidance
heun.py             sampler: second-order steps of two calls
loading.py          a trained model from its run directory
loads.py            how much the experts worked, by the time of the network's calls
metadata.py         what a picture was made of, and whether two were made alike
npz_file.py         all pictures in one array, written picture by picture
output.py           pictures as they are drawn, by one rank or many, to their store
picture_files.py    files that say how they were made, under free and safe names
prompts.py          files of prompts, and the pictures that they ask for
ranks.py            who draws which picture, and what ranks tell each other
sampler.py          the signature of all samplers
schedule.py         the times at which a sampler calls the network
stores.py           numbered files in a folder, or one file
"""
