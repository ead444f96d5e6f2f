"""The mixture-of-experts layer of DiffMoE (arXiv 2503.14487).

dispatch: tokens to the ranks of their experts and back.
experts: the experts of a rank.
fused: what lies around the expert GEMMs, in a kernel each, with gradients.
fused_activation: bias and activation as one operation.
fused_rows: tokens to rows and their weighted sum as one operation each.
fused_selection: the top K of a pool.
fused_silu: SiLU in fp32 of bf16.
grouped_linear: one linear map an expert, as a plain loop and by torch's grouped GEMM.
layer: route, dispatch, experts, combine.
permutation: tokens to the rows of experts, and the sum of a token's rows.
predictor: the capacity predictor.
router: what every router is.
routers/: the routers, and the one that a config names.
routing: what a router is given and what it answers.
selection: which expert takes which token, as functions of scores alone.
state: thresholds and biases of routers, which are no weights.
thresholds: the state of all routers, moved once an optimizer step.
transformer_engine: expert GEMMs by Transformer Engine.
triton_kernels: the fused operations on a GPU.
"""
