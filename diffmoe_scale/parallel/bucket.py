"""How many gradients DeepSpeed sends at once."""

MAX_BUCKET = 200_000_000


def bucket_size(num_parameters: int) -> int:
    """Elements of a bucket: all of a small model. DeepSpeed wants an even number."""
    return min(MAX_BUCKET, num_parameters + num_parameters % 2)
