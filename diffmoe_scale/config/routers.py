"""What each value of `moe.router` can be asked for."""

RULES: dict[str, tuple[str, ...]] = {
    "diffmoe": ("threshold", "threshold_count", "interval", "static"),
    "expert_choice": ("static",),
    "token_choice": ("static",),
    "dsmoe": ("static",),
    "expert_race": ("threshold", "interval", "static"),
    "expert_threshold": ("threshold", "interval", "static"),
    "promoe": ("static",),
}
"""Values of `sampling.selection` that each router has; the first is what it is made for. `static` is the
top K."""
WITH_POOL = ("diffmoe", "expert_race", "expert_threshold")
"""Routers whose `moe.pool` can be chosen."""
BY_TOKEN = ("token_choice", "dsmoe", "promoe")
"""Routers whose tokens take `moe.top_k` experts each."""
GATES: dict[str, tuple[str, ...]] = {
    "dsmoe": ("sigmoid",),
    "expert_threshold": ("sigmoid", "identity"),
}
"""Values of `moe.gate` of routers that have not all."""
