"""Where a run reads, writes and answers, looked at before anything is made."""

import socket
from pathlib import Path

from diffmoe_scale.checkpoint.convertible import refuse_convertible
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.shards.patterns import check_patterns
from diffmoe_scale.evaluation.metrics.measures import parse_measures
from diffmoe_scale.files import find_obstacle


def check_places(config: Config) -> None:
    """Look whether there are shards to read, a place to write and an address to answer at, and whether the
    metrics of drawn pictures have known names. Leaves nothing behind, and loads no torch.

    Raises: ValueError that names the setting.
    """
    check_patterns(config.data)
    weights = config.run.initialize_from
    if weights and not Path(weights).exists():
        raise ValueError(
            f"run.initialize_from is {weights!r}, which does not exist; expected a run directory, one of its "
            "checkpoints/step_N folders, or a safetensors export"
        )
    if weights:
        refuse_convertible(Path(weights))
    check_metric_names(config)
    check_address(config)
    obstacle = find_obstacle(Path(config.run.directory), is_folder=True)
    if obstacle:
        raise ValueError(
            f"run.directory is {config.run.directory!r}, but {obstacle}; choose another folder or make this "
            "one writable"
        )


def check_metric_names(config: Config) -> None:
    """Raises: ValueError for a name that is no metric."""
    if config.telemetry.metrics_every == 0:
        return
    try:
        parse_measures(config.metrics.names)
    except ValueError as error:
        raise ValueError(f"metrics.names is {list(config.metrics.names)}: {error}") from None


def check_address(config: Config) -> None:
    """Raises: ValueError for a name that no name server knows. Whether it is one of the main rank's, that
    rank finds out."""
    address, port = config.telemetry.prometheus_address, config.telemetry.prometheus_port
    if not port:
        return
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"telemetry.prometheus_address is {address!r}, which is no address ({error}); expected "
            "127.0.0.1, 0.0.0.0 or a name or address of the main rank's machine"
        ) from error
