"""A local folder of a language model in the format of transformers: what it must hold, checked before any
weights are read from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON

from diffmoe_scale.config.section import show
from diffmoe_scale.json_text import parse_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PIECES_FILE, TOKENIZER_FILE = "spiece.model", "tokenizer.json"
LARGEST_JSON = 64 << 20


@dataclass(frozen=True)
class ModelFolder:
    """Files of a model, all there. `setting` is what errors call the folder by: `text.encoders.0.path`."""

    path: Path
    setting: str
    settings: Mapping[str, Any]
    """What config.json says of the text model."""
    weights: tuple[Path, ...]

    @property
    def model_type(self) -> str:
        return str(self.settings["model_type"])

    def error(self, text: str) -> ValueError:
        """A sentence about the folder."""
        return ValueError(f"{self.setting} is {show(str(self.path))}; {text}")


def open_folder(path: str, setting: str) -> ModelFolder:
    """Raises: ValueError for a folder that lacks config.json or safetensors weights, or whose files cannot be
    read."""
    folder = Path(path)
    found = ModelFolder(folder, setting, {}, ())
    if not folder.is_dir():
        raise found.error(f"expected a folder on this machine with {CONFIG_FILE} and safetensors weights")
    if not (folder / CONFIG_FILE).is_file():
        raise found.error(f"the folder has no {CONFIG_FILE}; expected one as transformers writes it")
    settings = _read_json(found, CONFIG_FILE)
    # Models of pictures and text keep the text model's settings apart.
    inner = settings.get("text_config")
    settings = inner if isinstance(inner, dict) and "model_type" in inner else settings
    if not isinstance(settings.get("model_type"), str):
        raise found.error(f"its {CONFIG_FILE} has no model_type; expected one as transformers writes it")
    if settings.get("quantization_config"):
        raise found.error("its weights are quantized; expected weights in bf16, fp16 or fp32")
    return ModelFolder(folder, setting, settings, _weight_files(found))


def _read_json(folder: ModelFolder, name: str) -> dict[str, Any]:
    path = folder.path / name
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        found = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise folder.error(f"its {name} cannot be read ({error}); expected a JSON object") from error
    return found


def _weight_files(folder: ModelFolder) -> tuple[Path, ...]:
    """The files of the index, or the only one."""
    if (folder.path / INDEX_FILE).is_file():
        places = _read_json(folder, INDEX_FILE).get("weight_map")
        names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise folder.error(f"its {INDEX_FILE} has no weight_map of file names; restore it from a copy")
    else:
        names = [WEIGHTS_FILE]
    if missing := [name for name in names if not (folder.path / name).is_file()]:
        pickles = " (pytorch_model.bin is not read: a pickle can run code)"
        has_pickle = any(folder.path.glob("pytorch_model*.bin"))
        raise folder.error(
            f"the folder has no {missing[0]}{pickles if has_pickle else ''}; expected safetensors weights: "
            f"{WEIGHTS_FILE}, or {INDEX_FILE} and all its files"
        )
    return tuple(folder.path / name for name in names)
