"""No command is run that stands in a file: in the texts of pictures, tables, prompts and settings."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import EpsImagePlugin, Image
from PIL.PngImagePlugin import PngInfo

from diffmoe_scale.config.load import load_config, load_run_config
from diffmoe_scale.data.reading.pictures import open_image
from diffmoe_scale.evaluation.captions import check_captions
from diffmoe_scale.prepare.entries import list_pictures
from diffmoe_scale.prepare.place import Columns
from diffmoe_scale.prepare.texts import read_known
from diffmoe_scale.report.pictures import picture
from diffmoe_scale.report.report import write_report
from diffmoe_scale.sampling.calibration import collect_prompts
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.sampling.picture_files import read_picture_metadata
from diffmoe_scale.sampling.prompts import read_prompt_file
from diffmoe_scale.telemetry.trackers import TensorBoardTracker
from tests.data.samples import encode, make_sample
from tests.planted import file_of, plain_pickle, script, yaml_tag


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that planted commands make."""
    return tmp_path / "ran"


@pytest.fixture
def program(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A PostScript program, and a Ghostscript that makes the marker: Pillow starts it for such files."""
    binary = file_of(tmp_path, "bin/gs", f"#!/bin/sh\ntouch {marker}\n".encode())
    binary.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(binary))
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_pillow_starts_programs_unless_formats_are_named(program: bytes, marker: Path) -> None:
    with pytest.raises(OSError), Image.open(io.BytesIO(program)) as image:
        image.load()
    assert marker.exists()


def test_a_program_under_the_name_of_a_picture_is_refused(
    tmp_path: Path, program: bytes, marker: Path
) -> None:
    path = file_of(tmp_path, "run/samples/evaluation_a.png", program + b"% more\n" * 2**18)
    with pytest.raises(ValueError, match="no picture"):
        open_image(program)
    with pytest.raises(OSError, match="cannot identify"):
        read_picture_metadata(path)
    assert "evaluation_a.png cannot be read" in picture(path)
    tracker = TensorBoardTracker(tmp_path, start_step=0)
    with pytest.raises(OSError, match="cannot identify"):
        tracker.images(1, "a", path)
    tracker.close()
    assert not marker.exists()


def test_code_in_the_texts_of_a_picture_stays_text(tmp_path: Path, marker: Path) -> None:
    image = Image.new("RGB", (8, 8))
    texts = PngInfo()
    texts.add_text("prompt", script(marker))
    texts.add_text("planted", plain_pickle(marker).decode("latin-1").replace("\0", ""))
    path = file_of(tmp_path, "a.png", encode(image, pnginfo=texts))
    assert read_picture_metadata(path)["prompt"] == script(marker)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + plain_pickle(marker)
    path = file_of(tmp_path, "a.jpg", encode(image, "JPEG", exif=exif.tobytes()))
    assert read_picture_metadata(path) == {} and open_image(path.read_bytes()).size == (8, 8)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_code_in_a_prompt_stays_text(tmp_path: Path, marker: Path, suffix: str) -> None:
    prompt = script(marker)
    text = {".txt": prompt, ".jsonl": json.dumps({"prompt": prompt})}.get(suffix, f'prompt\n"{prompt}"')
    assert [row.prompt for row in read_prompt_file(file_of(tmp_path, f"a{suffix}", text.encode()))] == [
        prompt
    ]
    assert not marker.exists()


def test_a_pickled_type_in_a_table_is_not_loaded(tmp_path: Path, marker: Path) -> None:
    """Arrow's Python extension types were pickles (CVE-2023-47248)."""
    kind = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": plain_pickle(marker),
    }
    fields = [
        pyarrow.field("jpg", pyarrow.binary(), metadata=kind),
        pyarrow.field("caption", pyarrow.string(), metadata=kind),
    ]
    data = make_sample(0, 0)["png"]
    table = pyarrow.table(
        [[data], [script(marker)]], schema=pyarrow.schema(fields, metadata={"pandas": plain_pickle(marker)})
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (entry,) = list_pictures(tmp_path / "a.parquet", Columns()).entries
    assert entry.image.read() == data and read_known(entry).captions == [script(marker)]
    assert not marker.exists()


def test_python_tags_of_yaml_are_refused(tmp_path: Path, marker: Path) -> None:
    with pytest.raises(ValueError, match="could not determine a constructor for the tag"):
        load_config(file_of(tmp_path, "config.yaml", yaml_tag(marker).encode()))
    value = yaml_tag(marker).removeprefix("run: ").strip()
    with pytest.raises(ValueError, match="could not determine a constructor for the tag"):
        load_config(None, [f"run.steps={value}"])
    assert not marker.exists()


def test_a_command_in_the_config_of_a_run_is_not_run(tmp_path: Path, marker: Path) -> None:
    """By sample, find_gamma, evaluate and report; a file named by --config is the user's own."""
    run = tmp_path / "run"
    text = yaml.safe_dump(
        {
            "run": {"directory": str(run)},
            "data": {"train": [f"pipe:touch {marker}; cat x.tar"], "cache_folder": str(tmp_path / "cache")},
        }
    )
    path = file_of(run, "config.yaml", text.encode())
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        load_pipeline(run)
    with pytest.raises(ValueError, match="names a command instead of a file"):
        collect_prompts(load_run_config(path), 3)
    check_captions(load_run_config(path), run / "tokenizer.model")
    write_report(run)
    assert not marker.exists()


def test_the_report_of_a_run_with_code_in_its_files_is_made(tmp_path: Path, marker: Path) -> None:
    for name in ("evaluation.json", "gamma.json", "metrics.jsonl", "log.txt", "samples/a.png"):
        file_of(tmp_path, name, plain_pickle(marker))
    file_of(tmp_path, "config.yaml", yaml_tag(marker).encode())
    assert "<html" in write_report(tmp_path).read_text(encoding="utf-8")
    assert not marker.exists()
