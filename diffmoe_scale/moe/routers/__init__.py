"""The routers that `moe.router` names: which expert takes which token, and with what weight.

build: the router of a config.
diffmoe: an expert takes the top K of a pool; a predictor decides at inference.
dsmoe: a token takes its top k by sigmoid scores and a bias that balances loads.
expert_choice: an expert takes the top K of each sample.
expert_race: the top K of all pairs of token and expert.
expert_threshold: an expert takes what is over its threshold, in training and at inference.
promoe: a token takes the nearest prototypes; without a caption, the last expert.
token_choice: a token takes its top k, with a balance loss.
"""
