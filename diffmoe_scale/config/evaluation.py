"""Settings of an evaluation of many checkpoints: `evaluate --config FILE`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args  # Any: values of settings of sampling

from diffmoe_scale.config.check import require
from diffmoe_scale.config.keys import check_keys
from diffmoe_scale.config.load import parse_override, validate
from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.config.sampling import Weights
from diffmoe_scale.config.section import PATH, Range, Section
from diffmoe_scale.config.yaml_file import read_yaml

SuiteKind = Literal[
    "scenes", "labels", "prompts", "geneval", "geneval2", "dpg_bench", "t2i_compbench", "oneig", "longtext"
]
OWN_COPY: tuple[SuiteKind, ...] = tuple(
    kind for kind in get_args(SuiteKind) if kind not in ("scenes", "labels")
)
"""Suites whose prompts are in a file of the user's."""
MAX_VARIANTS = 1000


@dataclass(frozen=True, kw_only=True)
class SuiteConfig(Section, name="suites.N", is_free=True):
    """A set of prompts, and how their pictures are scored."""

    kind: SuiteKind
    """scenes (built in), labels (of a class-conditional model), prompts (a list of yours), or the layout of a
    benchmark."""
    name: str = ""
    """Its name in results; empty is the kind, with the language or the file's name where several fit."""
    file: Annotated[str, PATH] = ""
    """Your copy of the prompts: .txt, .jsonl, .csv or .tsv for prompts, evaluation_metadata.jsonl for
    geneval, geneval2_data.jsonl, the folder of .txt files for dpg_bench, color_val.txt or another such file
    for t2i_compbench, OneIG-Bench.csv, text_prompts.jsonl for longtext."""
    questions: Annotated[str, PATH] = ""
    """Questions for the judge: dpg_bench.csv, or the folder scripts/alignment/Q_D of oneig."""
    classes: Annotated[int, Range(0, 10**7)] = 0
    """Of labels: how many classes the models have (model.num_classes)."""
    prompts: Annotated[int, Range(0, 10**7)] = 0
    """So many, evenly over the file; 0 is all, and 96 for each of the six suites of scenes."""
    pictures: Annotated[int, Range(0, 10_000)] = 0
    """Pictures a prompt; 0 is the benchmark's own number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.file) == (self.kind in OWN_COPY),
            "suites.N.file",
            self.file,
            "nothing for kinds 'scenes' and 'labels', and for the others your copy of the prompts",
        )
        require(
            bool(self.classes) == (self.kind == "labels"),
            "suites.N.classes",
            self.classes,
            "the number of classes for kind 'labels' (model.num_classes), and nothing for the others",
        )
        require(
            not self.questions or self.kind in ("dpg_bench", "oneig"),
            "suites.N.questions",
            self.questions,
            "nothing: only kinds dpg_bench and oneig have their questions in other files",
        )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Section, name="judge", is_free=True):
    """A vision-language model that answers questions about pictures."""

    kind: Literal["none", "transformers", "endpoint", "stored"] = "none"
    """transformers: a local folder; endpoint: a server that speaks OpenAI's protocol; stored: answers that an
    earlier evaluation kept."""
    folder: Annotated[str, PATH] = ""
    """Of `transformers`: the folder of an image-text-to-text model, with its processor."""
    url: str = ""
    """Of `endpoint`: such as http://10.0.0.5:8000/v1."""
    model: str = ""
    """Of `endpoint`: the name of the model there."""
    key_file: Annotated[str, PATH] = ""
    """Of `endpoint`: a file that holds the key it asks for; empty sends none."""
    timeout_s: Annotated[float, Range(0.1, 86_400)] = 120.0
    """Of `endpoint`: seconds that an answer may take."""
    attempts: Annotated[int, Range(1, 100)] = 5
    """Of `endpoint`: how often a question is asked while the server does not answer."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of `transformers`: the format of its weights; bf16 is fp32 on a CPU."""
    fingerprint: str = ""
    """Of `stored`: the judge whose answers count; empty is the only one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needs = {"transformers": ("folder",), "endpoint": ("url", "model")}
        for kind, names in needs.items():
            for name in names:
                require(
                    bool(getattr(self, name)) == (self.kind == kind),
                    f"judge.{name}",
                    getattr(self, name),
                    f"a value for judge.kind {kind!r} and nothing for others",
                )
        require(
            not self.fingerprint or self.kind == "stored",
            "judge.fingerprint",
            self.fingerprint,
            "nothing unless judge.kind is 'stored'",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section, name="evaluation", is_free=True):
    """Which weights are evaluated, and where everything goes."""

    checkpoints: Annotated[tuple[str, ...], PATH] = ()
    """Run directories (all of their checkpoints), checkpoints/step_N folders, .safetensors exports, or
    patterns of these such as runs/*/checkpoints/step_*000."""
    output: Annotated[str, PATH] = ""
    """Folder for pictures, results and report. Running again with it does only what is not there."""
    weights: tuple[Weights, ...] = ("ema",)
    """Averaged weights (ema), those of optimizer.ema2_decay (ema2), and those of the last step (master)."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Source of the initial noise, the same for all; of scenes also of the prompts."""
    expert_parallel: Annotated[int, Range(1, 10**6)] = 1
    """Ranks that share the experts of a model which one device cannot hold."""
    poll_s: Annotated[float, Range(0.1, 86_400)] = 60.0
    """Of --watch: seconds between two looks for new checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("checkpoints", "output", "weights"):
            require(bool(getattr(self, name)), f"evaluation.{name}", getattr(self, name), "a value")
        for name in ("checkpoints", "weights"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"evaluation.{name}", values, "each value once")


@dataclass(frozen=True, kw_only=True)
class HarnessConfig:
    """All settings of an evaluation."""

    evaluation: EvaluationConfig
    suites: tuple[SuiteConfig, ...]
    sampling: dict[str, Any] = field(default_factory=dict)
    """Settings of sampling that replace the run's: a value, or a list of values that are all tried."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        require(bool(self.suites), "suites", list(self.suites), "at least one suite, as '- kind: scenes'")
        check_keys({"sampling": self.sampling})
        count = 1
        for name, value in self.sampling.items():
            values = value if isinstance(value, list) else [value]
            require(
                bool(values) and all(values.count(entry) == 1 for entry in values),
                f"sampling.{name}",
                value,
                "a value, or a list of different values",
            )
            count *= len(values)
        require(
            count <= MAX_VARIANTS,
            "sampling",
            f"{count} combinations",
            f"lists whose combinations are at most {MAX_VARIANTS}",
        )


def load_harness_config(path: Path, overrides: Sequence[str] = ()) -> HarnessConfig:
    """The settings of a YAML file with `section.key=value` overrides.

    Raises: ValueError naming the setting; an unknown key names the nearest right one.
    """
    tree = read_yaml(path)
    check_keys(tree, HarnessConfig, root=HarnessConfig)
    for override in overrides:
        section, key, value = parse_override(override, HarnessConfig)
        settings = tree.setdefault(section, {})
        require(isinstance(settings, dict), f"{section}.{key}", value, f"no setting: {section} is a list")
        settings[key] = value
    return validate(HarnessConfig, tree)
