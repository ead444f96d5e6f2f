"""Where a run reads and writes, looked at before anything is made."""

from pathlib import Path

from diffmoe_scale.checkpoint.convertible import refuse_convertible
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.shards.patterns import check_patterns
from diffmoe_scale.files import find_obstacle


def check_places(config: Config) -> None:
    """Look whether there are shards to read and a place to write. Leaves nothing behind, and loads no torch.

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
    obstacle = find_obstacle(Path(config.run.directory), is_folder=True)
    if obstacle:
        raise ValueError(
            f"run.directory is {config.run.directory!r}, but {obstacle}; choose another folder or make this "
            "one writable"
        )
