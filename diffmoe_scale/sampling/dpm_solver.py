"""DPM-Solver++ 2M: second-order steps in the logarithm of the signal-to-noise ratio, one call each."""

import itertools
import math

from torch import Tensor

from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.sampling.sampler import Predict, predict_data, split_at


def dpm_solver(predict: Predict, objective: Objective, noise_BCHW: Tensor, times: Tensor) -> Tensor:
    """Data x_0 after a call of the network at each of the falling `times` [T] (arXiv 2211.01095 algorithm 2).

    With x_t = signal x_0 + level noise, a step is exact for data that are predicted as a line in
    log(signal / level). Rectified flow begins without signal, at minus infinity: there, and in the step after
    it, the last prediction alone counts. The result, the data predicted last, is the usual first-order end.
    """
    x_t, all_times = noise_BCHW, times.tolist()
    x_0_before: Tensor | None = None
    ratio_before = -math.inf
    for t, t_next in itertools.pairwise(all_times):
        x_0, _, _ = split_at(predict, objective, x_t, t)
        (signal, level), (signal_next, level_next) = objective.levels(t), objective.levels(t_next)
        ratio = math.log(signal / level) if signal > 0 else -math.inf
        ratio_next = math.log(signal_next / level_next)
        data = x_0
        if x_0_before is not None and math.isfinite(ratio_before):
            extrapolation = (ratio_next - ratio) / (2 * (ratio - ratio_before))
            data = x_0 + extrapolation * (x_0 - x_0_before)
        kept = level_next / level
        x_t = kept * x_t + (signal_next - kept * signal) * data
        x_0_before, ratio_before = x_0, ratio
    return predict_data(predict, objective, x_t, all_times[-1])
