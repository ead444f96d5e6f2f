"""`python -m diffmoe_scale.page --checkpoint RUN`: a page in the browser that draws from a trained model."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from diffmoe_scale.cli.arguments import add_model_arguments
from diffmoe_scale.cli.command import command_parser, run_command

EXAMPLES = """examples:
  page --checkpoint runs/demo
  page --checkpoint runs/demo --port 0 sampling.guidance=3.0 sampling.calibration_images=32
on a machine without a browser, from your own:
  ssh -L 7860:127.0.0.1:7860 MACHINE    and open http://127.0.0.1:7860
"""
logger = logging.getLogger("diffmoe_scale.page")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser(
        "page",
        "Open a page that draws pictures from a trained model and shows how many experts each token got. "
        "Ctrl-C ends it.",
        epilog=EXAMPLES,
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=7860, help="port to listen at; 0 is any free one (default: 7860)")
    return run_command(parser, run, arguments)


def run(parsed: argparse.Namespace) -> None:
    # Imported here: `--help`, wrong arguments and a port in use answer at once.
    from diffmoe_scale.page.server import App, address_of, hosts_of, is_local, make_page_server, open_port
    from diffmoe_scale.parallel.launcher import adopt_launcher_variables

    adopt_launcher_variables()
    if (ranks := os.environ["WORLD_SIZE"]) != "1":
        raise ValueError(f"the page draws on one process, but the launcher started {ranks}; start it without")
    listener = open_port(parsed.host, parsed.port)
    from diffmoe_scale.page.drawing import Send, draw
    from diffmoe_scale.page.form import read_form
    from diffmoe_scale.page.model import Model, checkpoints_of, describe
    from diffmoe_scale.page.worker import Worker

    model = Model(
        parsed.checkpoint, weights=parsed.weights, settings=parsed.settings, is_bound=not is_local(listener)
    )

    def answer(form: object, send: Send) -> None:
        try:
            asked = read_form(form)
        except ValueError as error:
            send({"kind": "error", "text": str(error)})
            return
        draw(asked, model.get, send)

    def start() -> dict[str, object]:
        return describe(model.first) | {
            "named": str(parsed.checkpoint),
            "checkpoints": checkpoints_of(parsed.checkpoint),
        }

    worker = Worker(answer)
    app = App(worker, start, hosts=hosts_of(listener))
    server = make_page_server(app, listener)
    if not is_local(listener):
        logger.warning("everyone who reaches this machine can draw, without a password")
    print(f"page: {address_of(listener)} (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    finally:
        worker.close()
        server.server_close()


if __name__ == "__main__":
    sys.exit(main())
