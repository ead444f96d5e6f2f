"""What weights of other formats are, and the command that makes weights of this program of them."""

from pathlib import Path

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
DIFFUSERS = "model_index.json"
MEGATRON = ("metadata.json", "common.pt")


def refuse_convertible(path: Path) -> None:
    """Before a path is read as weights of this program. Reads no file, and loads no torch.

    Raises: ValueError for a file of torch.save, a folder of diffusers or a checkpoint of Megatron.
    """
    if kind := _kind(path):
        target = path.absolute().with_suffix("").name or "weights"
        raise ValueError(
            f"{path} is {kind}, which is converted first: "
            f"python tools/convert_checkpoint.py {path} {target}.safetensors"
        )


def _kind(path: Path) -> str:
    if path.suffix in TORCH_SUFFIXES and path.is_file():
        return "a file of torch.save"
    if all((path / name).is_file() for name in MEGATRON):
        return "a checkpoint of Megatron"
    has_weights = any(path.glob("diffusion_pytorch_model*")) if path.is_dir() else False
    if (path / DIFFUSERS).is_file() or has_weights:
        return "a folder of diffusers"
    return ""
