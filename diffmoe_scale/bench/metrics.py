"""Time and memory of FID and other metrics from the features of many pictures.

B pictures of a batch, N of all, F features.
"""

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from diffmoe_scale.bench.options import MetricsOptions
from diffmoe_scale.evaluation.metrics.fidelity import precision_recall
from diffmoe_scale.evaluation.metrics.mmd import kernel_distance
from diffmoe_scale.evaluation.metrics.moments import Gaussian, Moments, frechet_distance
from diffmoe_scale.evaluation.metrics.rows import Rows

KIB_PER_MIB = 1024
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


def bench_metrics(options: MetricsOptions) -> list[dict[str, object]]:
    """A row a task: seconds, CPU seconds, peak MiB of its process, and MiB of Python and torch before it."""
    rows = []
    for task in (frechet, kid, neighbours):
        # A process each: the peak of one must not hide in that of another.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            rows.append(executor.submit(_measure, task, options).result())
    return rows


def frechet(options: MetricsOptions) -> float:
    """Mean and covariance of all pictures in one pass, and the distance to those of the reference."""
    return frechet_distance(_gaussian(options, options.pictures, 0), _gaussian(options, options.reference, 1))


def kid(options: MetricsOptions) -> float:
    """The features of all pictures, and the kernel distance to those of the reference."""
    samples_NF = _rows(options, options.pictures, 0)
    size = min(KID_SUBSET_SIZE, options.pictures, options.reference)
    reference_NF = _rows(options, options.reference, 1)
    return kernel_distance(samples_NF, reference_NF, subsets=KID_SUBSETS, size=size)[0]


def neighbours(options: MetricsOptions) -> float:
    """The features of all pictures, precision and recall."""
    return precision_recall(_rows(options, options.pictures, 0), _rows(options, options.reference, 1))[0]


def _measure(task: Callable[[MetricsOptions], float], options: MetricsOptions) -> dict[str, object]:
    torch.set_num_threads(options.threads)
    torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64))  # loads LAPACK
    before_mib = _peak_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    value = task(options)
    return {
        "task": task.__name__,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "peak_mib": _peak_mib(),
        "before_mib": before_mib,
        "value": value,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB


def _gaussian(options: MetricsOptions, count: int, seed: int) -> Gaussian:
    moments = Moments(options.width)
    for features_BF, _ in _batches(options, count, seed):
        moments.update(features_BF)
    return moments.gaussian()


def _rows(options: MetricsOptions, count: int, seed: int) -> Tensor:
    rows = Rows(options.width)
    for features_BF, places_B in _batches(options, count, seed):
        rows.update(features_BF, places_B)
    return rows.gather()


def _batches(options: MetricsOptions, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, count, options.batch):
        size = min(options.batch, count - first)
        yield torch.rand(size, options.width, generator=generator), torch.arange(first, first + size)
