"""tools/demo.py: how it draws, and which detections it keeps."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from densedet import model_zoo
from densedet.cli import exit_code
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build
from densedet.video import Video, write_video
from densedet.visualization import label_colour

CONFIG = "projects/fvit/configs/quickstart.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image, a video, and weights of the quickstart model with untrained heads."""
    root = tmp_path_factory.mktemp("drawing")
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "a.png")
    with write_video(root / "a.mp4", rate=5) as video:
        for _ in range(2):
            video.add(image)
    torch.manual_seed(0)
    Checkpointer(build(model_zoo.get_config(CONFIG).model, "model"), str(root)).save("weights")
    return root


def run(demo, folder, output, *options, source=("--input", "a.png")):
    argv = [
        *("--config-file", CONFIG, "--weights", str(folder / "weights.pth"), "--device", "cpu"),
        *(source[0], str(folder / source[1]), "--vocabulary", "red star;blue ring"),
        *("--output", str(output), *options),
    ]
    return demo.main(argv)


def detections(output):
    return json.loads((output / "detections.json").read_text())


def test_three_ways_to_draw_have_the_same_results(demo, folder, tmp_path):
    found = {}
    for option in ("--draw=detectron2", "--draw=fast", "--no-draw"):
        assert run(demo, folder, tmp_path / option, option, "--least-score", "0.3") == 0
        found[option] = detections(tmp_path / option)
    results = found["--no-draw"]
    assert results and all(other == results for other in found.values())
    assert [p.name for p in (tmp_path / "--no-draw").iterdir()] == ["detections.json"]
    assert Image.open(tmp_path / "--draw=detectron2" / "a.png").size == (853, 640)
    fast = np.array(Image.open(tmp_path / "--draw=fast" / "a.png"))
    assert fast.shape == (96, 128, 3)
    colours = {tuple((255 * np.array(label_colour(r["label"]))).round()) for r in results}
    assert colours <= {tuple(map(float, pixel)) for pixel in fast.reshape(-1, 3)}


@pytest.mark.parametrize(("option", "size"), [("--draw=fast", (96, 128, 3)), ("--no-draw", None)])
def test_videos(demo, folder, tmp_path, option, size):
    assert run(demo, folder, tmp_path, option, source=("--video", "a.mp4")) == 0
    assert {r["image_id"] for r in detections(tmp_path)} <= {1, 2}
    if size is None:
        assert [p.name for p in tmp_path.iterdir()] == ["detections.json"]
    else:
        assert [frame.shape for frame in Video(tmp_path / "a.mp4")] == [size] * 2


def test_no_draw_overwrites_no_image(demo, folder, tmp_path):
    """So that an image may lie in the folder of the output."""
    before = (folder / "a.png").read_bytes()
    assert run(demo, folder, folder, "--no-draw") == 0
    assert (folder / "a.png").read_bytes() == before
    assert exit_code(lambda: run(demo, folder, folder)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top-k", "0"), "--top-k 0 must be at least 1"),
        (("--least-score", "2"), "--least-score 2.0 must lie in 0..1"),
        (("--similarity", "cat", "--top-k", "3"), "--similarity has no use for"),
        (("--draw", "fast", "--no-draw"), "not allowed with"),
        (("--draw", "quickly"), "invalid choice"),
    ],
)
def test_wrong_use_is_one_line(demo, folder, tmp_path, capsys, options, message):
    assert exit_code(lambda: run(demo, folder, tmp_path / "out", *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_which_detections_are_kept(demo, folder, tmp_path):
    def results(name, *options):
        assert run(demo, folder, tmp_path / name, "--no-draw", *options) == 0
        return detections(tmp_path / name)

    every = results("every", "--least-score", "0")
    best = results("best", "--least-score", "0", "--top-k", "2")
    assert len(best) == 2 and max(r["score"] for r in best) == max(r["score"] for r in every)
    alone = results("alone", "--least-score", "0", "--agnostic-nms")
    corners = [torch.tensor([r["bbox"]]) for r in alone]
    for i, box in enumerate(corners):
        for other in corners[i + 1 :]:
            assert iou(box, other) < 0.75
    assert any(
        iou(torch.tensor([a["bbox"]]), torch.tensor([b["bbox"]])) > 0.75
        for i, a in enumerate(every)
        for b in every[i + 1 :]
    )


def iou(box, other):
    """Of two boxes [1, 4] as x, y, width, height."""
    ends, other_ends = box[:, :2] + box[:, 2:], other[:, :2] + other[:, 2:]
    sides = (torch.min(ends, other_ends) - torch.max(box[:, :2], other[:, :2])).clamp(min=0)
    both = sides.prod()
    return float(both / (box[:, 2:].prod() + other[:, 2:].prod() - both))
