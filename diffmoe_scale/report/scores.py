"""Scores of an evaluation as a section of the report and as text, and what the experts did in it."""

from collections.abc import Sequence

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.evaluation.results import Evaluation
from diffmoe_scale.plan.picture import format_flops
from diffmoe_scale.report.html import Markup, bar, element, figure, join, missing, table
from diffmoe_scale.report.pictures import evaluation_pictures
from diffmoe_scale.report.plots import plot_capacity, plot_load_by_layer, plot_load_by_time
from diffmoe_scale.report.training import Record, training_load

EXPLANATION = (
    "Share of pictures in which a strict checker finds everything the caption asks for, with its standard "
    "error. Chance is the same pictures judged by shuffled captions (the orange line): only what lies above "
    "it comes from the caption."
)
LOAD_EXPLANATION = (
    "the experts that a token gets on average over sampling, layers and prompts; 1 is the cost of the dense "
    "network. Load is the share of the tokens that an expert takes, times the number of experts."
)


def format_scores(evaluation: Evaluation) -> str:
    """The scores as a table for the terminal, with chance beside each and the average inference capacity
    below."""
    rows = _rows(evaluation)
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'suite':<{width}}  score  +/-    shuffled  prompts"]
    for name, score, error, shuffled, prompts in rows:
        lines.append(f"{name:<{width}}  {score:5.2f}  {error:4.2f}  {shuffled:10.2f}  {prompts:7d}")
    average = evaluation.capacity.average
    lines.append(f"average inference capacity {average:.3f} (1 = the cost of the dense network)")
    if evaluation.flops:
        calls = f"{evaluation.calls:.4g} network calls a picture"
        lines.append(f"{calls}, {format_flops(evaluation.flops)} a picture")
    return "\n".join(lines)


def scores_section(
    evaluation: Evaluation | None, records: Sequence[Record], directory: RunDirectory, command: str
) -> Markup:
    """A row a suite and the evaluation's pictures, or the command that makes them."""
    title = element("h2", "Scores")
    if evaluation is None:
        return join([title, missing("No evaluation yet. To score the model:", command)])
    rows = [
        (name, f"{score:.2f} \N{PLUS-MINUS SIGN} {error:.2f}", f"{chance:.2f}", prompts, bar(score, chance))
        for name, score, error, chance, prompts in _rows(evaluation)
    ]
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.sampling.items())
    calls = f"; {evaluation.calls:.4g} network calls a picture" if evaluation.calls else ""
    calls += f", {format_flops(evaluation.flops)} a picture" if evaluation.flops else ""
    origin = f"Step {evaluation.step:,} ({evaluation.checkpoint}); sampling: {settings}{calls}."
    is_old = bool(records) and records[-1]["step"] > evaluation.step
    parts = [
        title,
        element("p", EXPLANATION),
        table(rows, header=["suite", "score", "chance", "prompts", ""], numbers=(1, 2, 3), has_total=True),
        element("p", origin, kind="note"),
    ]
    if is_old:
        went_on = f"Training has gone on to step {records[-1]['step']:,} since. To score it again:"
        parts.append(missing(went_on, command))
    return join([*parts, *evaluation_pictures(directory)])


def experts_section(
    evaluation: Evaluation | None, records: Sequence[Record], config: Config | None, command: str
) -> Markup:
    """What experts did in the evaluation, else in training."""
    title = element("h2", "Experts")
    if config is not None and config.moe.num_experts == 0:
        return join([title, element("p", "A dense model: it has no experts.")])
    if evaluation is None:
        note = missing("No evaluation yet. It measures the experts' load:", command)
        return join([title, note, training_load(records)])
    capacity = evaluation.capacity
    if not capacity.has_load:
        return join([title, element("p", "The evaluation holds no load of experts.")])
    load_TLE, layers, times = capacity.load_TLE, capacity.layers, capacity.times
    figures = [
        (
            plot_capacity(load_TLE, layers, times),
            "Capacity over the times of the network's calls: all layers (bold) and each layer.",
        ),
        (
            plot_load_by_layer(load_TLE.mean(0), layers),
            "Load of each expert by block, averaged over the calls.",
        ),
        (
            plot_load_by_time(load_TLE, layers, times),
            "Load of each expert over the times of the calls, from noise to data.",
        ),
    ]
    text = f"Average inference capacity {capacity.average:.3f}: {LOAD_EXPLANATION}"
    drawn = [figure(svg.encode(), kind="svg", caption=caption) for svg, caption in figures]
    return join([title, element("p", text), *drawn])


def _rows(evaluation: Evaluation) -> list[tuple[str, float, float, float, int]]:
    """(suite, score, its standard error, score against shuffled captions, prompts), the mean last."""
    rows = [
        (name.replace("_", " "), entry.score, entry.error, entry.shuffled, entry.prompts)
        for name, entry in evaluation.scores.items()
    ]
    mean = evaluation.mean
    return [*rows, ("mean", mean.score, evaluation.error_of_mean, mean.shuffled, mean.prompts)]
