"""A frozen encoder of pictures from a local folder of transformers: one feature a patch, for representation
alignment.

B pictures, N patches, Z feature width.
"""

from pathlib import Path
from typing import Any  # transformers' configs and networks, whose attributes differ

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.encoders.fingerprint import WeightFiles, fingerprint
from diffmoe_scale.encoders.text.folder import CONFIG_FILE, ModelFolder, open_folder
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.words import counted, short_reason

KNOWN = ("dinov2", "dinov2_with_registers", "dinov3_vit")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of channels, unless the folder's preprocessor says others."""
PREPROCESSOR_FILE = "preprocessor_config.json"
NOT_SHOWN = ("hidden_act", "layer_norm_eps", "rope_theta")
HEAD_WIDTH = 64
SETTING = "alignment.encoder"


class Teacher:
    """Features of clean pictures. Its weights are read at the first use, or by `load`."""

    def __init__(self, path: str, *, precision: str) -> None:
        """Raises: ValueError for a folder that holds no such model."""
        self.folder = open_folder(path, SETTING)
        self.precision = NUMBER_FORMATS[precision]
        config = _read_config(self.folder)
        self.width = int(config.hidden_size)
        self.patch = int(config.patch_size)
        self.num_extra = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
        self.mean, self.std = _read_normalization(self.folder)
        self.unusual = _unusual_settings(config)
        self._network: nn.Module | None = None

    def fingerprint(self) -> str:
        """Of weights and of how pictures are prepared."""
        settings = self.folder.model_type, self.patch, self.mean, self.std, *self.unusual
        sources = [self.folder.path / CONFIG_FILE, *self.folder.weights]
        files = WeightFiles(sources, record=self.folder.path / "fingerprint.json")
        return files.remember(lambda: fingerprint(_load(self.folder, torch.float32), *settings), *settings)

    def load(self, device: torch.device) -> None:
        """Read the weights. Raises: ValueError for missing tensors and other shapes."""
        network = _load(self.folder, self.precision).to(device)
        self._network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, pictures_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, Z] in fp32 of pictures in [-1, 1]: what the last block says of each patch after the final
        norm, patches in rows, N = rows x columns of `grid`.

        As REPA prepares them: channels normalized first, then bicubic without antialiasing to a size of
        `grid` patches.
        """
        if self._network is None:
            self.load(pictures_BCHW.device)
        assert self._network is not None
        rows, columns = grid
        prepared_BCHW = self.prepare(pictures_BCHW, (rows * self.patch, columns * self.patch))
        states_BNZ: Tensor = self._network(prepared_BCHW.to(self.precision)).last_hidden_state
        features_BNZ = states_BNZ[:, self.num_extra :].float()
        assert features_BNZ.shape[1:] == (rows * columns, self.width), features_BNZ.shape
        return features_BNZ

    def prepare(self, pictures_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """What the network is given."""
        mean_C11, std_C11 = (
            torch.tensor(values, device=pictures_BCHW.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        normalized_BCHW = ((pictures_BCHW.float() + 1) / 2 - mean_C11) / std_C11
        return F.interpolate(normalized_BCHW, size=size, mode="bicubic", align_corners=False)


def _read_config(folder: ModelFolder) -> Any:
    """Raises: ValueError for another kind of model."""
    import transformers  # seconds, and needed by few

    if folder.model_type not in KNOWN:
        raise folder.error(
            f"its {CONFIG_FILE} describes a {folder.model_type!r} model; expected one of {', '.join(KNOWN)}"
        )
    try:
        settings = dict(folder.settings)
        match folder.model_type:
            case "dinov2":
                return transformers.Dinov2Config.from_dict(settings)
            case "dinov2_with_registers":
                return transformers.Dinov2WithRegistersConfig.from_dict(settings)
            case _:
                return transformers.DINOv3ViTConfig.from_dict(settings)
    except Exception as error:  # transformers checks in many ways
        raise _no_model(folder, error) from error


def _unusual_settings(config: Any) -> tuple[tuple[str, object], ...]:
    """What the weights do not show, where it is not what published models have."""
    usual = type(config)()
    found = [(key, getattr(config, key)) for key in NOT_SHOWN if hasattr(usual, key)]
    found = [(key, value) for key, value in found if value != getattr(usual, key)]
    if config.num_attention_heads * HEAD_WIDTH != config.hidden_size:
        found.append(("num_attention_heads", config.num_attention_heads))
    return tuple(found)


def _load(folder: ModelFolder, dtype: torch.dtype) -> nn.Module:
    """By transformers itself, which knows the names that earlier versions gave to tensors. Raises: ValueError
    for tensors that are missing or of another shape, and layers that are left over."""
    import transformers

    kind: Any
    match folder.model_type:
        case "dinov2":
            kind = transformers.Dinov2Model
        case "dinov2_with_registers":
            kind = transformers.Dinov2WithRegistersModel
        case _:
            kind = transformers.DINOv3ViTModel
    try:
        network, found = kind.from_pretrained(
            folder.path, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise folder.error(f"its weights cannot be loaded ({short_reason(error)})") from error
    if missing := sorted(found["missing_keys"]):
        raise folder.error(
            f"its weights lack {counted(len(missing), 'tensor')} of a {folder.model_type} model, such as "
            f"{missing[0]}; expected all: they are incomplete, or of another architecture"
        )
    # Heads of other uses may be left over, layers not: features of the first few would pass for those of all.
    if left := sorted(name for name in found["unexpected_keys"] if "layer." in name):
        layers = counted(int(network.config.num_hidden_layers), "layer")
        raise folder.error(
            f"its weights hold {counted(len(left), 'tensor')} without a place in a {folder.model_type} model "
            f"of {layers}, such as {left[0]}; restore {CONFIG_FILE} from a copy"
        )
    loaded: nn.Module = network
    return loaded


def _no_model(folder: ModelFolder, error: Exception) -> ValueError:
    return folder.error(f"its {CONFIG_FILE} makes no {folder.model_type} model ({short_reason(error)})")


def _read_normalization(folder: ModelFolder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels. Raises: ValueError for a damaged file."""
    path: Path = folder.path / PREPROCESSOR_FILE
    if not path.is_file():
        return IMAGENET
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        mean, std = (
            tuple(float(value) for value in found.get(name, usual))
            for name, usual in zip(("image_mean", "image_std"), IMAGENET, strict=True)
        )
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {mean} and standard deviation {std} of three channels")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise folder.error(f"its {PREPROCESSOR_FILE} cannot be read ({error})") from error
    return mean, std


def new_dinov2(*, size: int, patch: int, width: int, depth: int, heads: int) -> Any:
    """A DINOv2 of random weights, from torch's generator."""
    import transformers

    config = transformers.Dinov2Config(
        image_size=size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        layerscale_value=0.1,
    )
    return transformers.Dinov2Model(config)
