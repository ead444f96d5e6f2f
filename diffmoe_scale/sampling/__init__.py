"""Pictures from trained networks.

adams_bashforth.py  sampler: second-order steps of one call
ancestral.py        sampler: DDPM's own random steps
batch.py            pictures batch by batch: what is asked for, its noise, the sampler, the decoder
build.py            the sampler that the settings name
calibration.py      the thresholds that give a wanted capacity
call_capacity.py    how much experts worked: by picture, call, layer, half of guidance, kind of prompt
cost.py             what a picture cost
ddim.py             sampler: DDPM's steps over fewer times
dopri5.py           sampler: adaptive steps of order 5
dpm_solver.py       sampler: DPM-Solver++ 2M
euler.py            sampler: first-order steps
generate.py         `generate`: pictures for notebooks
guidance.py         the network as samplers call it, with guidance
heun.py             sampler: second-order steps of two calls
loading.py          a trained model from its run directory
loads.py            how much the experts worked, by the time of the network's calls
logit_counts.py     what capacity predictors said, counted by layer and expert
metadata.py         what a picture was made of, and whether two were made alike
npz_file.py         all pictures in one array, written picture by picture
output.py           pictures as they are drawn, by one rank or many, to their store
picture_files.py    files that say how they were made, under free and safe names
prompts.py          files of prompts, and the pictures that they ask for
ranks.py            who draws which picture, and what ranks tell each other
sampler.py          the signature of all samplers
schedule.py         the times at which a sampler calls the network
stores.py           numbered files in a folder, or one file
thresholds.py       how experts choose: a rule, or thresholds kept in RUN/calibrations
"""
