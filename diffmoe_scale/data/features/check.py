"""Whether cached features are those that a run would compute."""

from dataclasses import replace

from diffmoe_scale.config.check import require
from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.features.source import FeatureSource, differences


def bucket_fields(buckets: BucketConfig) -> tuple[tuple[float, ...], int]:
    """`aspects` and `step` of the FeatureSource of a set that is made with these buckets."""
    return (buckets.aspects, buckets.step) if buckets.enabled else ((), 0)


def check_shapes(found: FeatureSource, *, image_size: int, buckets: BucketConfig) -> None:
    """Raises: ValueError if training would cut pictures to other sizes than those that the features in its
    shards are of."""
    aspects, step = bucket_fields(buckets)
    _refuse_other(
        found,
        replace(found, image_size=image_size, aspects=aspects, step=step),
        "model.image_size and buckets",
    )
    is_one = all(resolution == image_size for _, resolution in buckets.resolutions)
    require(
        is_one,
        "buckets.resolutions",
        buckets.resolutions,
        f"none but model.image_size ({image_size}): features are cached at that resolution alone",
    )


def check_features(found: FeatureSource, *, autoencoder: str, text: str, is_flipped: bool) -> None:
    """Raises: ValueError if training would compute other features of its images than those in its shards.

    `text` is the fingerprint of the run's frozen text encoder, or "" for one that is trained along, and in
    class mode.
    """
    # Without features of captions the denoiser encodes them itself.
    _refuse_other(
        found,
        replace(found, autoencoder=autoencoder, text=text if found.text else ""),
        "autoencoder and text",
    )
    require(
        not is_flipped or found.num_views == 2,
        "data.horizontal_flip",
        is_flipped,
        "false: the shards hold no features of mirrored pictures",
    )


def check_teacher(found: FeatureSource, *, teacher: str, patch: int) -> None:
    """Raises: ValueError unless the shards hold what alignment with this encoder would compute, on the grid
    of patches of so many latent pixels."""
    require(
        bool(found.teacher),
        "alignment.encoder",
        teacher,
        "nothing: the shards hold latents without pictures, and no features for alignment; make them anew by "
        "tools/cache_features.py with alignment.encoder",
    )
    _refuse_other(
        found, replace(found, teacher=teacher, teacher_patch=patch), "alignment.encoder and model.patch_size"
    )


def _refuse_other(found: FeatureSource, expected: FeatureSource, settings: str) -> None:
    if found != expected:
        raise ValueError(
            "the shards of data.train or data.validation hold features of other settings: "
            f"{differences(found, expected)}; "
            f"set {settings} as they were, or make the features anew by tools/cache_features.py"
        )
