"""The suite that the settings name."""

from dataclasses import replace
from pathlib import Path, PurePath

from diffmoe_scale.config.evaluation import SuiteConfig
from diffmoe_scale.evaluation.suites.dpg_bench import dpg_suite
from diffmoe_scale.evaluation.suites.geneval import geneval_suite
from diffmoe_scale.evaluation.suites.geneval2 import geneval2_suite
from diffmoe_scale.evaluation.suites.label_list import label_suite
from diffmoe_scale.evaluation.suites.longtext import longtext_suite
from diffmoe_scale.evaluation.suites.oneig import oneig_suite
from diffmoe_scale.evaluation.suites.prompt_list import prompt_suite
from diffmoe_scale.evaluation.suites.scenes import scene_suite
from diffmoe_scale.evaluation.suites.suite import Suite
from diffmoe_scale.evaluation.suites.t2i_compbench import LONGEST_NAME, compbench_suite


def build_suite(config: SuiteConfig, *, seed: int) -> Suite:
    """Raises: ValueError for a file of another benchmark, naming it and what is missing; OSError."""
    name, file, copies = config.name or config.kind, Path(config.file), config.pictures
    questions = Path(config.questions) if config.questions else None
    suite: Suite
    match config.kind:
        case "scenes":
            return scene_suite(name=name, prompts=config.prompts, copies=copies, seed=seed)
        case "labels":
            suite = label_suite(name=name, num_classes=config.classes, copies=copies)
        case "prompts":
            suite = prompt_suite(file, name=config.name or file.stem, copies=copies)
        case "geneval":
            suite = geneval_suite(file, name=name, copies=copies)
        case "geneval2":
            suite = geneval2_suite(file, name=name, copies=copies)
        case "dpg_bench":
            suite = dpg_suite(file, questions, name=name, copies=copies)
        case "t2i_compbench":
            suite = compbench_suite(file, name=config.name or f"{name} {file.stem}", copies=copies)
        case "oneig":
            suite = oneig_suite(file, questions, name=config.name or file.stem, copies=copies)
        case "longtext":
            suite = longtext_suite(file, name=config.name or f"{name} {file.stem}", copies=copies)
    _check_names(suite, file)
    return _fewer(suite, config.prompts)


def _check_names(suite: Suite, file: Path) -> None:
    """Raises: ValueError for a picture that would lie outside of its folder, or in the place of another: a
    table of someone else's may say how pictures are called."""
    seen: set[str] = set()
    for place in range(suite.count):
        name = suite.file_of(place)
        path = PurePath(name)
        fits = all(len(part.encode("utf-8", "replace")) <= LONGEST_NAME for part in path.parts)
        if path.is_absolute() or ".." in path.parts or not fits:
            raise ValueError(
                f"{file}: a picture would be called {name!r:.80}; expected names within its folder, of at "
                f"most {LONGEST_NAME} bytes"
            )
        if str(path) in seen:
            raise ValueError(f"{file}: a picture {name!r:.80} is asked for twice; leave one line out")
        seen.add(str(path))


def _fewer(suite: Suite, count: int) -> Suite:
    """`count` prompts evenly over the suite, so that all of its groups are there; 0 is all."""
    total = len(suite.prompts)
    if not 0 < count < total:
        return suite
    return replace(suite, prompts=[suite.prompts[place * total // count] for place in range(count)])
