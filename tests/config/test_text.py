"""Text encoders: one by its own settings, or a list of them."""

from pathlib import Path

import pytest

from diffmoe_scale.config.help import describe_config
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.text import TextEncoderConfig

CLIP = "{kind: open_clip, path: 'local-dir:~/clip', max_tokens: 77}"
T5 = "{kind: transformers, path: ~/t5, max_tokens: 256, layer: -2}"
OWN = "{kind: sentencepiece, max_tokens: 32}"


def listed(*entries: str, more: tuple[str, ...] = ("model.text_projection=true",)) -> list[str]:
    return [f"text.encoders=[{', '.join(entries)}]", *more]


def test_encoders_stand_in_a_list_on_the_command_line_and_in_the_resolved_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(None, listed(CLIP, T5, OWN))
    clip, t5, own = config.text.listed()
    assert (clip.path, t5.path, own.path) == ("local-dir:/home/someone/clip", "/home/someone/t5", "")
    assert (t5.layer, t5.max_tokens, t5.precision) == (-2, 256, "bf16")
    assert config.text.trained == own and config.text.trained_stream == 2
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_settings_of_one_encoder_are_a_list_of_one() -> None:
    (own,) = load_config(None, ["text.max_tokens=48"]).text.listed()
    assert own == TextEncoderConfig(kind="sentencepiece", max_tokens=48)
    words = ["text.kind=open_clip", "text.open_clip_weights=x.pt", "text.open_clip_name=ViT-B-32"]
    (clip,) = load_config(None, [*words, "text.max_tokens=60"]).text.listed()
    assert clip == TextEncoderConfig(
        kind="open_clip", path="x.pt", architecture="ViT-B-32", max_tokens=60, precision="fp32"
    )
    (folder,) = load_config(None, ["text.kind=open_clip", "text.open_clip_weights=local-dir:x"]).text.listed()
    assert (folder.path, folder.architecture) == ("local-dir:x", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (listed(OWN, T5.replace("path", "paht")), r"text\.encoders\.1\.paht .* text\.encoders\.1\.path\?"),
        (listed(OWN, "{kind: transformers, max_tokens: 9}"), r"text\.encoders\.1\.path is ''; expected no"),
        (listed(CLIP, T5.replace("256", "1")), r"text\.encoders\.1\.max_tokens is 1; expected 2 to 8192"),
        (listed("{kind: transformers, path: x}"), r"text\.encoders\.0\.max_tokens is missing"),
        (listed("{kind: t5, path: x, max_tokens: 9}"), r"text\.encoders\.0\.kind is 't5'; .*transformers"),
        (listed(T5.replace("-2", "0")), r"text\.encoders\.0\.layer is 0; expected 1 or more, or -1 or less"),
        (listed(T5.replace("layer: -2", "precision: fp16")), r"text\.encoders\.0\.precision is 'fp16'"),
        (listed(OWN.replace("}", ", layer: 2}")), r"text\.encoders\.0\.layer is 2; expected none"),
        (listed(OWN.replace("}", ", precision: fp32}")), r"text\.encoders\.0\.precision is 'fp32'"),
        (listed(OWN.replace("}", ", path: x}")), r"text\.encoders\.0\.path is 'x'; expected no path"),
        (listed(CLIP.replace("}", ", tokenizer: x}")), r"text\.encoders\.0\.tokenizer is 'x'; expected none"),
        (listed(CLIP.replace("}", ", architecture: x}")), r"text\.encoders\.0\.architecture is 'x'"),
        (listed(CLIP.replace("local-dir:", "")), r"text\.encoders\.0\.architecture is ''; expected the name"),
        (listed(OWN, OWN), r"text\.encoders\.1\.kind is 'sentencepiece' once more"),
        (listed(OWN, T5, more=()), r"model\.text_projection is False; expected true"),
        (listed(T5, more=("text.max_tokens=77",)), r"text\.max_tokens is 77; expected its default 24 beside"),
        (
            listed(T5, more=("model.conditioning=class", "model.num_classes=3")),
            r"text\.encoders is \['transformers'\]; expected none: with model\.conditioning 'class'",
        ),
        (["text.encoders=x"], r"text\.encoders is 'x'; expected a list"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, words)


def test_help_shows_the_settings_of_an_entry() -> None:
    text = describe_config("text")
    assert "text.encoders=[]" in text and "text.encoders.N.kind=...   [sentencepiece, open_clip," in text
    assert "data.train.N.shards=..." in describe_config("data")


def test_paths_and_formats_of_encoders_are_free_and_the_rest_is_the_model(tmp_path: Path) -> None:
    def identity(*words: str) -> object:
        return model_settings(load_config(None, list(words)), tokenizer=tmp_path / "none", frozen={})["text"]

    first = identity(*listed(T5))
    assert first == identity(
        *listed(T5.replace("~/t5", "/elsewhere").replace("layer", "precision: fp32, layer"))
    )
    assert first != identity(*listed(T5.replace("-2", "-1")))
    assert first != identity(*listed(T5.replace("256", "128")))


@pytest.mark.parametrize(
    ("alone", "entry"),
    [
        (["text.max_tokens=32", "text.width=64"], OWN),
        (["text.kind=open_clip", "text.open_clip_weights='local-dir:~/clip'", "text.max_tokens=77"], CLIP),
        (
            ["text.kind=open_clip", "text.open_clip_weights=x.pt", "text.open_clip_name=ViT-B-32"],
            "{kind: open_clip, path: x.pt, architecture: ViT-B-32, max_tokens: 24}",
        ),
    ],
)
def test_a_list_of_one_is_the_model_of_the_settings_for_one_alone(
    alone: list[str], entry: str, tmp_path: Path
) -> None:
    more = tuple(word for word in alone if "width" in word)
    configs = load_config(None, alone), load_config(None, listed(entry, more=more))
    first, second = (model_settings(config, tokenizer=tmp_path / "none", frozen={}) for config in configs)
    assert first == second
