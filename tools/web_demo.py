"""A web page on this machine: choose a picture, type words, see where they are.

It shows what tools/demo.py draws, with a table and the results as JSON. Needs the extra "web", see
docs/install.md. Pictures and words stay on this machine; the page asks no other.

Example:
    python tools/web_demo.py --config-file quickstart
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import json
import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densedet.cli import ToolParser, run_tool
from densedet.errors import (
    DensedetError,
    ImageError,
    InstallationError,
    VocabularyError,
)
from densedet.files import write_text
from densedet.tasks import DETECTION_SCORE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from densedet.predictor import Predictor
    from densedet.views import Draw, Results

    Picture = NDArray[np.uint8]

EXAMPLES = (11, 5, 14)  # scenes of Shapes World
SIMILARITY = "similarity"
CACHE_SECONDS = 3_600
LEGIBLE_SIDE = 320  # pixels
BUTTONS: list[Any] = ["download", "fullscreen"]  # of a picture

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What the page shows: an image (H, W, 3), the results of the demo, their table and, for a
    vocabulary, how it was understood."""

    drawn: Picture | None
    results: Results
    header: list[str]
    rows: list[list[Any]]
    understood: str = ""


def look(
    predictor: Predictor, image: Picture, words: str, stuff: str, task: str, least: float
) -> Answer:
    """Look for words in a picture (H, W, 3).

    Args:
        predictor: its own vocabulary is left as it is.
        words: see `read_words`; for the similarity, one phrase.
        stuff: likewise; models of things alone do not look for it.
        task: one of the predictor's, or `SIMILARITY`.
        least: the score in 0..1 below which something is none of these.

    Raises:
        VocabularyError: as of `read_words`; too many words for a picture of this size; no stuff for
            a panoptic model.
        ConfigError: the model has no map in the space of words.
    """
    from densedet.views import detections_view, segments_view, similarity_view
    from densedet.web import check_length, check_scores, read_words

    # at the resolution of a small image, labels would cover it: Detectron2's enlarges it
    way: Draw = "fast" if min(image.shape[:2]) >= LEGIBLE_SIDE else "detectron2"
    if task == SIMILARITY:
        check_length(words)
        drawn, results = similarity_view(predictor, words.strip(), way)(image, 1)
        return tabulate(drawn, results, ["phrase", "lowest", "highest", "at"])
    if "panoptic" in predictor.tasks and not stuff.strip():
        raise VocabularyError("no stuff: this model needs some too, such as: grass; sky")
    vocabulary = read_words(words, stuff if has_stuff(predictor) else "")
    if has_stuff(predictor):
        check_scores(vocabulary, image)
    view, shown = predictor.with_vocabulary(vocabulary), vocabulary.labels
    if task == "instance":
        drawn, results = detections_view(view, shown, least, way)(image, 1)
        results.sort(key=lambda result: -result["score"])
        header = ["label", "score", "bbox"]
    else:
        drawn, results = segments_view(view, shown, least, task == "panoptic", way)(image, 1)
        results.sort(key=lambda result: -result["area"])
        header = ["label", "area"] + ["score"] * (task == "panoptic")
    return tabulate(drawn, results, header, vocabulary.describe())


def has_stuff(predictor: Predictor) -> bool:
    """Whether the model tells what each pixel is, and so looks for stuff."""
    return "semantic" in predictor.tasks


def tabulate(
    drawn: Picture | None, results: Results, header: list[str], understood: str = ""
) -> Answer:
    """An answer whose table has some entries of each result; lists become text."""
    rows = [[result.get(name, "") for name in header] for result in results]
    texts = [[str(cell) if isinstance(cell, list) else cell for cell in row] for row in rows]
    return Answer(drawn, results, header, texts, understood)


@contextmanager
def told_in_the_page() -> Iterator[None]:
    """Turn an error into a message that stays in the page until it is closed."""
    import gradio

    try:
        yield
    except Exception as error:
        message = "this cannot be looked at; the log of the server says why"
        if isinstance(error, DensedetError):
            message = html.escape(str(error), quote=False)
        else:
            logger.exception("a defect, answered in the page")
        raise gradio.Error(message, duration=None, print_exception=False) from None


def finder(predictor: Predictor, folder: Path) -> Callable[..., tuple[Any, ...]]:
    """What the button does; JSON goes to files in ``folder``, where old ones are removed."""
    import gradio

    from densedet.web import read_picture, remove_old

    def find(path: str | None, *settings: Any) -> tuple[Any, ...]:
        with told_in_the_page():
            if path is None:
                raise ImageError("no picture: upload one, or choose an example")
            image = read_picture(path)
            answer = look(predictor, image, *settings)
        said = {"width": image.shape[1], "height": image.shape[0], "results": answer.results}
        remove_old(folder, CACHE_SECONDS)
        name = folder / f"results-{uuid.uuid4().hex}.json"
        write_text(name, json.dumps(said))
        table = gradio.Dataframe(value=answer.rows, headers=answer.header)
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        count = size if settings[2] == SIMILARITY else f"**{len(answer.rows)} found** in {size}"
        if answer.understood:  # as code, so that no label becomes Markdown
            count += "\n\n`" + answer.understood.replace("`", "'") + "`"
        return answer.drawn, count, table, gradio.DownloadButton(value=name, interactive=True)

    return find


def accept(path: str | None) -> Any:
    """What an upload does: the picture, in the size that it is looked at, and a free upload box."""
    import gradio

    from densedet.web import read_picture

    if path is None:
        return gradio.skip(), gradio.skip()
    with told_in_the_page():
        return read_picture(path), None


def example(number: int) -> list[Any]:
    """A scene of Shapes World: the picture, the words for its things, and those for its stuff."""
    from densedet.data.shapes_world_scenes import make_scene

    scene = make_scene(0, "val", number)
    things = dict.fromkeys(thing.label for thing in scene.things)
    stuff = dict.fromkeys(name for name, _ in scene.stuff)
    return [scene.image, "; ".join(things), "; ".join(stuff)]


def least_score(task: str) -> float:
    """The least score that is set when a task is chosen."""
    return DETECTION_SCORE if task == "instance" else 0.0


def make_page(predictor: Predictor, folder: Path) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        predictor: shared by all visitors.
        folder: for the files that they download.
    """
    import gradio as gr

    kept = (CACHE_SECONDS, CACHE_SECONDS)
    with gr.Blocks(title="densedet", analytics_enabled=False, delete_cache=kept) as page:
        gr.Markdown("# densedet\nType words, and see where they are in a picture.")
        with gr.Row():
            with gr.Column():
                inputs = add_inputs(predictor)
                button = gr.Button("Find", variant="primary")
            with gr.Column():
                outputs = [
                    gr.Image(label="Found", format="png", buttons=BUTTONS, elem_id="found"),
                    gr.Markdown(elem_id="count"),
                    gr.Dataframe(
                        label="Results",
                        headers=["label", "score"],
                        interactive=False,
                        elem_id="results",
                    ),
                    gr.DownloadButton("Download JSON", interactive=False),
                ]
        shown = inputs[:3] if has_stuff(predictor) else inputs[:2]
        examples = [example(number)[: len(shown)] for number in EXAMPLES]
        gr.Examples(examples, shown, label="Examples: Shapes World")
        gr.on([button.click, inputs[1].submit], finder(predictor, folder), inputs, outputs)
    return page


def add_inputs(predictor: Predictor) -> list[Any]:
    """The left side of the page: the arguments of `finder`'s function, in their order."""
    import gradio as gr

    image, things, others = example(EXAMPLES[0])
    tasks = [*predictor.tasks, SIMILARITY]
    upload = gr.File(label="Upload a picture", file_types=["image"], height=110, elem_id="upload")
    picture = gr.Image(
        image,
        label="Picture",
        type="filepath",
        image_mode=None,  # so that gradio leaves the file as it is
        format="png",
        height=260,
        interactive=False,
        buttons=BUTTONS,
        elem_id="picture",
    )
    hint = "Between ; or one a line; synonyms between commas. For the similarity: one phrase."
    words = gr.Textbox(things, label="Words", info=hint, lines=2)
    stuff = gr.Textbox(others, label="Stuff, which has no instances", visible=has_stuff(predictor))
    task = gr.Radio(tasks, value=tasks[0], label="Task")
    least = gr.Slider(0, 1, least_score(tasks[0]), label="Least score")
    upload.upload(accept, upload, [picture, upload])
    task.change(least_score, task, least)
    return [picture, words, stuff, task, least]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--config-file",
        default="quickstart-panoptic",
        help="config, saved model, or a short name of the model zoo; default: the\n"
        "panoptic model that make demo trains; quickstart is its detector",
    )
    parser.add_argument("--weights", help="checkpoint; default: model_final.pth of the output_dir")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: this machine alone; 0.0.0.0: whoever asks"
    )
    parser.add_argument("--port", type=int, default=7860)
    return parser


def serve(page: Any, host: str, port: int) -> None:
    """Answer until Ctrl-C, or until somebody ends the process."""
    import gradio

    from densedet.web import MOST_BYTES

    plain = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        max_file_size=MOST_BYTES,
        footer_links=[],
        theme=plain,
        quiet=True,
        prevent_thread_lock=True,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the files are removed
    print(f"{url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def main(argv: list[str] | None = None) -> int:
    """Run the tool until Ctrl-C."""
    args = build_parser().parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise InstallationError(
            "the web page needs gradio: pip install -e '.[web]' in the checkout (docs/install.md)"
        )
    from densedet import Predictor
    from densedet.web import check_address

    check_address(args.host, args.port)
    predictor = Predictor(args.config_file, args.weights, args.device)
    with tempfile.TemporaryDirectory(prefix="densedet-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # for what is uploaded
        serve(make_page(predictor, Path(folder)), args.host, args.port)
    return 0


if __name__ == "__main__":
    run_tool(main)
