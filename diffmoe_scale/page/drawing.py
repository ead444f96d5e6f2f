"""One drawing as events: what goes on, each call of the network, then the picture and what it cost.

L layers with experts, N tokens of the picture.
"""

import base64
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any  # JSON values

from diffmoe_scale.config.check import RunError
from diffmoe_scale.page.form import Form
from diffmoe_scale.page.model import describe
from diffmoe_scale.plan.picture import format_flops
from diffmoe_scale.sampling.batch import Request, generate_batch, latent_shape
from diffmoe_scale.sampling.cost import measure_cost
from diffmoe_scale.sampling.generate import check_requests, override_sampling
from diffmoe_scale.sampling.guidance import NetworkCall
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.metadata import picture_metadata
from diffmoe_scale.sampling.picture_files import encode_picture, file_stem
from diffmoe_scale.sampling.thresholds import find_selection
from diffmoe_scale.telemetry.picture_grid import to_pixels
from diffmoe_scale.words import short_reason

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Send = Callable[[Event], None]
FindModel = Callable[[str, str], tuple[Pipeline, bool]]
"""By checkpoint and weights, as `Model.get`."""
MOST_EXPERTS = 255
"""Of a token, as the heat map's bytes can say them."""


class Stopped(Exception):
    """Nobody waits for the picture any more."""


def draw(form: Form, find_model: FindModel, send: Send) -> None:
    """Sends the events of a picture; whatever goes wrong is one of them. `send` may raise Stopped."""
    try:
        with log_lines(send):
            _draw(form, find_model, send)
    except Stopped:
        logger.info("a drawing was stopped: its page was closed or asked for it")
    except (ValueError, OSError, RunError) as error:
        send({"kind": "error", "text": str(error)})
    except Exception as error:  # a page that was left without an answer would wait for ever
        logger.exception("a drawing failed")
        text = f"{type(error).__name__}: {short_reason(error)}; the terminal of the page shows more"
        send({"kind": "error", "text": text})


def _draw(form: Form, find_model: FindModel, send: Send) -> None:
    send({"kind": "status", "text": "looking for the model"})
    pipeline, is_new = find_model(form.checkpoint, form.weights)
    if is_new:
        send(describe(pipeline))
    sampling = override_sampling(pipeline.config.sampling, dict(form.settings))
    pipeline = replace(pipeline, config=replace(pipeline.config, sampling=sampling))
    request = Request(_prompt(form, pipeline), form.seed, 0, form.negative_prompt)
    check_requests([request], pipeline.config, sampling)
    _, height, width = latent_shape(pipeline.networks, sampling)
    patch = pipeline.networks.denoiser.transformer.patch
    selection = find_selection(pipeline, sampling)

    def watch(call: NetworkCall) -> None:
        send(_event_of(call, rows=height // patch, columns=width // patch))

    start = time.perf_counter()
    drawn = generate_batch(pipeline.networks, [request], sampling, selection=selection, watch=watch)
    (pixels_HWC,) = to_pixels(drawn.images_BCHW)
    seconds = time.perf_counter() - start
    cost = measure_cost(pipeline, sampling, drawn.loads, calls=drawn.calls, num_pictures=1)
    if not drawn.images_BCHW.isfinite().all():
        logger.warning("numbers that are not finite in the picture, drawn in grey")
    png = encode_picture(pixels_HWC, "png", picture_metadata(pipeline, request, selection))
    send(
        {
            "kind": "picture",
            "png": base64.b64encode(png).decode(),
            "name": f"{file_stem(form.seed, request.prompt)}.png",
            "height": pixels_HWC.shape[0],
            "width": pixels_HWC.shape[1],
            "step": pipeline.step,
            "seconds": seconds,
            "capacity": cost.capacity if drawn.loads.times else None,
            "calls": cost.calls,
            "flops": format_flops(cost.flops),
        }
    )


def _prompt(form: Form, pipeline: Pipeline) -> str | int:
    """Raises: ValueError for a model of classes unless the prompt is a label."""
    if pipeline.config.model.conditioning != "class":
        return form.prompt
    if not (form.prompt.isascii() and form.prompt.isdigit() and len(form.prompt) < 10):
        raise ValueError(
            f"the prompt is {form.prompt!r:.80}, but this is a model of classes; expected a label, 0 to "
            f"{pipeline.config.model.num_classes - 1}"
        )
    return int(form.prompt)


def _event_of(call: NetworkCall, *, rows: int, columns: int) -> Event:
    """The experts' numbers as bytes, layer by layer, of the one picture that is drawn."""
    experts_LN = call.experts_LBN[:, 0].clamp(max=MOST_EXPERTS)
    return {
        "kind": "call",
        "half": "conditional" if call.is_conditional else "unconditional",
        "time": call.times[0],
        "rows": rows,
        "columns": columns,
        "experts": base64.b64encode(bytes(experts_LN.flatten().tolist())).decode(),
    }


@contextmanager
def log_lines(send: Send) -> Iterator[None]:
    """Lines that the package logs in this thread, such as the trials of a calibration, are sent too."""
    handler = _Sender(send)
    ours = logging.getLogger("diffmoe_scale")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


class _Sender(logging.Handler):
    def __init__(self, send: Send) -> None:
        super().__init__(logging.INFO)
        self.send_event, self.thread = send, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            kind = "status" if record.levelno < logging.WARNING else "note"
            self.send_event({"kind": kind, "text": record.getMessage()})
