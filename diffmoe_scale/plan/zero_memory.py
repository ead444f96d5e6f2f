"""Memory of DeepSpeed's ZeRO 1 and 2 over a step, as version 0.19.8 allocates it: weights, masters, moments
and the average between steps; gradients, buckets and copies as the backward pass and the update go on.

Followed line by line in deepspeed/runtime/zero/stage_1_and_2.py (`reduce_independent_p_g_buckets_and_
remove_grads`, `average_tensor`, `independent_gradient_partition_epilogue`, `step`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from diffmoe_scale.parallel.bucket import bucket_size
from diffmoe_scale.plan.parameter_list import Parameter
from diffmoe_scale.plan.trace import Gradient

FP32, FP64 = 4, 8
MUON_AT_ONCE = 2**26
"""Elements of the matrices that `train.muon` makes orthogonal together."""
ALIGNMENT = 2
"""DeepSpeed pads a group to a multiple of this times its ranks."""


@dataclass(frozen=True)
class ZeroSettings:
    """How gradients are kept. `overlaps` is true on GPUs: two buckets, filled as gradients come."""

    stage: int
    weight_bytes: int
    gradient_bytes: int
    """Of a number on its way between ranks."""
    ranks: int
    expert_parallel: int
    accumulation: int
    overlaps: bool
    has_muon: bool = False
    """One momentum for matrices of hidden layers, instead of two moments."""


@dataclass
class Group:
    """Parameters of one kind, flat and split over `ranks`; this rank is number `rank` of them."""

    parameters: list[Parameter]
    ranks: int
    rank: int
    index: int
    is_expert: bool = False
    is_muon: bool = False
    share: int = 0
    inside: set[str] = field(default_factory=set)
    """Parameters of which this rank owns a part."""
    largest: int = 0
    """Elements of the largest such part."""

    def __post_init__(self) -> None:
        multiple = ALIGNMENT * self.ranks
        total = sum(parameter.numel for parameter in self.parameters)
        self.share = -(-total // multiple) * ALIGNMENT
        first, last, place = self.rank * self.share, (self.rank + 1) * self.share, 0
        for parameter in self.parameters:
            part = min(last, place + parameter.numel) - max(first, place)
            if part > 0:
                self.inside.add(parameter.name)
                self.largest = max(self.largest, part)
            place += parameter.numel


class ZeroMemory:
    """The engine's bytes beside activations. `held` is what it holds now, `peak` the most of `held` plus the
    activations that the caller names."""

    def __init__(self, parameters: Sequence[Parameter], settings: ZeroSettings, *, rank: int) -> None:
        """Of rank `rank` of all."""
        self.settings = settings
        self.groups = _groups(parameters, settings, rank)
        self._group_of = {p.name: group for group in self.groups for p in group.parameters}
        self._numel = {p.name: p.numel for p in parameters}
        self.weights = settings.weight_bytes * sum(group.share * group.ranks for group in self.groups)
        self.share = sum(group.share for group in self.groups)
        self.moments = sum(group.share * (1 if group.is_muon else 2) for group in self.groups)
        """Elements of the optimizer's moments."""
        self._bucket = bucket_size(sum(self._numel.values()))
        self._is_compact = settings.weight_bytes != FP32
        is_accumulated = settings.stage == 1 or not self._is_compact
        self._bucket_bytes = FP32 if is_accumulated else settings.weight_bytes
        self._own: dict[str, int] = {}
        self.own = 0
        """Gradients that lie in storages of their own."""
        self.buckets = self.temporary = 0
        self._partitions: dict[int, int] = {}
        self.partitions = 0
        """fp32 gradients of this rank's shares."""
        self.copied = self.summed = 0
        """Without such: gradients of the parameters this rank has a part of, of a micro-batch and of all."""
        self._inside = sum(self._numel[name] for group in self.groups for name in group.inside)
        self._filled: list[str] = []
        self._elements = 0
        self._is_last = False
        self._moment = "forward"
        self._activations = 0
        self.peak = self.held_at_peak = 0
        self.moment_of_peak = self._moment

    @property
    def held(self) -> int:
        """Bytes for gradients, buckets and copies."""
        gradients = self.own + self.partitions + self.copied + self.summed
        return gradients + self.buckets + self.temporary

    def note(self, activations: int) -> None:
        """Hold against the peak what there is now beside `activations`."""
        self._activations = activations
        held = self.held
        if activations + held > self.peak:
            self.peak, self.held_at_peak, self.moment_of_peak = activations + held, held, self._moment

    def begin(self, moment: str, *, is_last: bool) -> None:
        """A pass of a micro-batch, which may be the last of the step."""
        self._moment, self._is_last = moment, is_last

    def take(self, name: str, gradient: Gradient, activations: int) -> None:
        """A gradient is complete, at `activations` bytes that hold it."""
        self.note(activations)
        if not self.buckets:
            self.buckets = self._bucket * self._bucket_bytes * (2 if self.settings.overlaps else 1)
            self.note(activations)
        self._activations = activations - gradient.freed
        if self.settings.stage == 1:
            if self._is_compact:
                self.temporary = FP32 * self._numel[name]
                self.note(activations)
                self.temporary = 0
                self._keep(name, FP32 * self._numel[name])
            else:
                self._keep(name, gradient.freed)
            if not (self.settings.overlaps and self._is_last):
                return
        self._put_into_bucket(name)

    def end_micro_batch(self) -> None:
        """The end of a backward pass: what is left is reduced."""
        if self.settings.stage == 1 and not self._is_last:
            return
        if self.settings.stage == 1 and not self.settings.overlaps:
            for group in self.groups:
                for parameter in group.parameters:
                    self._put_into_bucket(parameter.name)
        self._reduce()
        if self._is_compact:
            if self._is_last:
                for group in self.groups:
                    self._partition(group)
        else:
            self.summed = self.summed or self.copied
        self.copied = 0
        if not (self.settings.stage == 1 and self._is_compact):
            self.buckets = 0  # there, gradients of other ranks' shares still lie in it

    def step(self, activations: int) -> None:
        """The update of the weights."""
        largest = max(group.largest for group in self.groups)
        self.temporary = FP64 * largest  # norms are of fp64 copies, one gradient after the other
        self.note(activations)
        self.temporary = 0
        for index, group in enumerate(self.groups):
            if not self._is_compact:
                self.temporary = FP32 * group.share
                self.note(activations)
                self.temporary = 0
            if group.is_muon:
                # Gradients that became updates, orthogonal ones, and two copies of those of one shape, taken
                # to be half of all.
                self.temporary = FP32 * (2 * group.share + min(group.share, 2 * MUON_AT_ONCE))
            self.note(activations)
            self.temporary = 0
            self.partitions -= self._partitions.pop(index, 0)
        self.summed = self.buckets = 0

    def _keep(self, name: str, size: int) -> None:
        """In a storage of its own, to which later micro-batches add."""
        if name not in self._own:
            self._own[name] = size
            self.own += size

    def _put_into_bucket(self, name: str) -> None:
        count = self._numel[name]
        if self._elements + count > self._bucket:
            self._reduce()
        self.own -= self._own.pop(name, 0)
        self._filled.append(name)
        self._elements += count

    def _reduce(self) -> None:
        """Average the bucket over its ranks, and keep this rank's share."""
        counts = {True: 0, False: 0}
        for name in self._filled:
            group = self._group_of[name]
            counts[group.is_expert] += self._numel[name]
            if self._is_compact and name in group.inside:
                self._partition(group)
        for count in counts.values():
            wire = self.settings.gradient_bytes
            casts = wire if wire != self._bucket_bytes else 0
            self.temporary = (self._bucket_bytes + casts) * count
            self.note(self._activations)
        self.temporary = 0
        if not self._is_compact and self._filled:
            self.copied = self.settings.weight_bytes * self._inside
            self.note(self._activations)
        self._filled.clear()
        self._elements = 0

    def _partition(self, group: Group) -> None:
        """fp32 gradients of this rank's share, made when the first of them comes."""
        if group.index not in self._partitions:
            self._partitions[group.index] = FP32 * group.share
            self.partitions += FP32 * group.share


def _groups(parameters: Sequence[Parameter], settings: ZeroSettings, rank: int) -> list[Group]:
    members: dict[tuple[bool, bool, bool, bool], list[Parameter]] = {}
    for parameter in parameters:
        is_expert, is_decayed, is_router, is_matrix = parameter.group
        is_spread = is_expert and settings.expert_parallel > 1
        is_muon = is_matrix and settings.has_muon
        members.setdefault((is_spread, is_decayed, is_router, is_muon), []).append(parameter)
    groups: list[Group] = []
    for (is_spread, _, _, is_muon), group in members.items():
        ranks = settings.ranks // settings.expert_parallel if is_spread else settings.ranks
        place = rank // settings.expert_parallel if is_spread else rank
        groups.append(Group(group, ranks, place, index=len(groups), is_expert=is_spread, is_muon=is_muon))
    return groups
