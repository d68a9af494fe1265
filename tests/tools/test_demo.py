"""tools/demo.py as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from densedet import model_zoo
from densedet.cli import exit_code
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build
from densedet.predictor import Predictor
from densedet.video import Video, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures, and weights of the quickstart model with untrained heads."""
    root = tmp_path_factory.mktemp("demo")
    (root / "in").mkdir()
    for i in range(3):
        Image.fromarray(make_scene(0, "val", i).image).save(root / "in" / f"{i}.jpg")
    torch.manual_seed(0)
    cfg = model_zoo.get_config("projects/fvit/configs/quickstart.py")
    Checkpointer(build(cfg.model, "model"), str(root)).save("weights")
    return root


def arguments(folder, output, *inputs, vocabulary="red star;blue ring,blue hoop"):
    return [
        *("--config-file", "projects/fvit/configs/quickstart.py"),
        *("--weights", str(folder / "weights.pth"), "--device", "cpu"),
        *("--input", *map(str, inputs), "--score-threshold", "0.0"),
        *("--vocabulary", vocabulary, "--output", str(output)),
    ]


def test_pictures_and_json(demo, folder, tmp_path):
    inputs = [folder / "in" / "0.jpg", folder / "in" / "[12].jpg"]
    assert demo.main(arguments(folder, tmp_path, *inputs)) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
        "detections.json",
    ]
    found = json.loads((tmp_path / "detections.json").read_text())
    names = {r["image_id"]: Path(r["file_name"]).name for r in found}
    assert names == {1: "0.jpg", 2: "1.jpg", 3: "2.jpg"}
    labels = ["red star", "blue ring"]
    assert all(r["label"] == labels[r["category_id"] - 1] for r in found)
    assert {r["label"] for r in found} == set(labels)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in names],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [],
    }
    truth.createIndex()
    assert len(truth.loadRes(found).anns) == len(found)  # pycocotools takes them as results
    drawn = np.array(Image.open(tmp_path / "0.png"))
    plain = np.array(Image.open(folder / "in" / "0.jpg").resize(drawn.shape[1::-1]))
    assert min(drawn.shape[:2]) >= 640 and np.abs(drawn.astype(int) - plain).max() > 50


def test_words_that_are_not_shown_compete(demo, folder, tmp_path):
    def scores(*extra, words="red star;blue ring"):
        argv = arguments(folder, tmp_path / "out", folder / "in" / "0.jpg", vocabulary=words)
        assert demo.main([*argv, *extra]) == 0
        found = json.loads((tmp_path / "out" / "detections.json").read_text())
        return [r["label"] for r in found], [r["score"] for r in found]

    labels, both = scores()
    only, shown = scores("--show", "red star")
    assert set(labels) == {"red star", "blue ring"} and set(only) == {"red star"}
    assert shown == [s for s, label in zip(both, labels, strict=True) if label == "red star"]
    assert max(scores(words="red star")[1]) > max(shown)
    assert scores("--show", " red star ; blue ring; ") == (labels, both)


def test_a_folder_and_a_vocabulary_file(demo, folder, tmp_path):
    (tmp_path / "words.txt").write_text("red star\nblue ring,blue hoop\n")
    words = str(tmp_path / "words.txt")
    assert demo.main(arguments(folder, tmp_path / "out", folder / "in", vocabulary=words)) == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {r["image_id"] for r in found} == {1, 2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "absent.jpg"}, "absent.jpg: no such image"),
        ({"input": "corrupt.jpg"}, "corrupt.jpg"),
        ({"vocabulary": ""}, "vocabulary"),
        ({"vocabulary": "red star;red star"}, "red star"),
        ({"weights": "absent.pth"}, "absent.pth"),
        ({"config": "absent.py"}, "absent.py"),
        ({"config": "projects/panoptic_fpn/configs/quickstart.py"}, "OpenVocabularyPanopticFPN"),
        ({"stuff": "red star"}, "red star"),
        ({"stuff": "grass"}, "--stuff: OpenVocabularyRCNN detects things alone"),
        ({"show": "green star"}, "green star"),
        ({"show": "red star,blue ring"}, "the vocabulary has no label 'red star,blue ring'"),
        ({"show": ""}, "the vocabulary has no label ''"),
        ({"threshold": "2"}, "--least-score"),
        ({"more": ["--task", "panoptic"]}, "--task panoptic: OpenVocabularyRCNN has instance"),
        ({"more": ["--task", "depth"]}, "invalid choice: 'depth'"),
        ({"more": ["--similarity", "a star"]}, "--similarity has no use for --vocabulary"),
        ({"more": ["--video", "absent.mp4"]}, "not allowed with argument --input"),
        ({"more": ["--max-frames", "0"]}, "--max-frames 0"),
        ({"more": ["--precision", "int8"]}, "precision='int8'"),
        ({"override": "model.no_such_key=1"}, "there is no key 'no_such_key'"),
        ({"override": "dataloader.test.mapper.augmentations=abc"}, "str is not a list of augment"),
        ({"config": "eva02-b16", "override": "train.seed=1"}, "'eva02-b16' is a CLIP alone"),
        ({"config": "~nobody-of-this-name/model"}, "no config '~nobody-of-this-name/model'"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(demo, folder, tmp_path, capsys, change, message):
    whole = (folder / "in" / "0.jpg").read_bytes()
    (tmp_path / "corrupt.jpg").write_bytes(whole[: len(whole) // 2])
    argv = arguments(folder, tmp_path / "out", folder / "in" / "0.jpg")

    def put(flag, value):
        argv[argv.index(flag) + 1] = value

    if "input" in change:
        put("--input", str(tmp_path / change["input"]))
    if "vocabulary" in change:
        put("--vocabulary", change["vocabulary"])
    if "show" in change:
        argv += ["--show", change["show"]]
    if "stuff" in change:
        argv += ["--stuff", change["stuff"]]
    if "weights" in change:
        put("--weights", str(tmp_path / change["weights"]))
    if "config" in change:
        put("--config-file", change["config"])
    if "threshold" in change:
        put("--score-threshold", change["threshold"])
    argv += change.get("more", [])
    if "override" in change:
        argv += ["--opts", change["override"]]
    assert exit_code(lambda: demo.main(argv)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]
    assert not (tmp_path / "out").exists()


def test_pictures_of_the_same_name_are_refused(demo, folder, tmp_path, capsys):
    (tmp_path / "0.jpg").write_bytes((folder / "in" / "0.jpg").read_bytes())
    argv = arguments(folder, tmp_path / "out", folder / "in" / "0.jpg", tmp_path / "0.jpg")
    assert exit_code(lambda: demo.main(argv)) == 2
    assert "same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"


def test_segments(demo, folder, tmp_path):
    argv = [
        *("--config-file", ZERO_SHOT),
        *("--input", str(folder / "in"), "--output", str(tmp_path), "--device", "cpu"),
        *("--vocabulary", "red star;blue ring", "--stuff", "grass;sand", "--show", "grass"),
    ]
    assert demo.main(argv) == 0
    names = ["0.png", "1.png", "2.png", "segments.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    found = json.loads((tmp_path / "segments.json").read_text())
    assert found and {(r["label"], r["category_id"], r["isthing"]) for r in found} == {
        ("grass", 3, False)
    }
    for result in found:
        picture = np.array(Image.open(tmp_path / f"{Path(result['file_name']).stem}.png"))
        plain = Image.open(result["file_name"]).resize(picture.shape[1::-1], Image.BICUBIC)
        assert np.abs(picture.astype(int) - np.array(plain)).max() > 50


def test_tasks_of_a_panoptic_model(demo, folder, tmp_path):
    config = "projects/panoptic_fpn/configs/quickstart.py"
    torch.manual_seed(0)
    cfg = model_zoo.get_config(config)
    Checkpointer(build(cfg.model, "model"), str(tmp_path)).save("panoptic")
    argv = [
        *("--config-file", config, "--weights", str(tmp_path / "panoptic.pth"), "--device", "cpu"),
        *("--input", str(folder / "in" / "0.jpg"), "--score-threshold", "0"),
        *("--vocabulary", "red star;blue ring", "--stuff", "grass;sand"),
    ]

    def found(task, *extra):
        output = tmp_path / task
        assert demo.main([*argv, "--task", task, "--output", str(output), *extra]) == 0
        kind = "detections" if task == "instance" else "segments"
        return json.loads((output / f"{kind}.json").read_text())

    instances = found("instance")
    assert {r["label"] for r in instances} <= {"red star", "blue ring"} and "bbox" in instances[0]
    # each class once, and together they cover the picture
    classes = found("semantic")
    assert len({r["label"] for r in classes}) == len(classes)
    assert sum(r["area"] for r in classes) == 160 * 160
    segments = found("panoptic", "--opts", "model.combine_instances_score_thresh=0.0")
    assert {r["isthing"] for r in segments} == {True, False}
    assert all(("score" in r) == r["isthing"] for r in segments)


def test_similarity(demo, folder, tmp_path, capsys):
    argv = [
        *("--config-file", ZERO_SHOT, "--device", "cpu", "--output", str(tmp_path)),
        *("--input", str(folder / "in"), "--similarity", "red star, or $5"),
    ]
    assert demo.main(argv) == 0
    assert capsys.readouterr().out == f"3 images, 3 heat maps: {tmp_path}\n"
    found = json.loads((tmp_path / "similarity.json").read_text())
    assert [r["image_id"] for r in found] == [1, 2, 3]
    predictor = Predictor(ZERO_SHOT, device="cpu")
    for result in found:
        cosines = predictor.similarity("red star, or $5", result["file_name"])
        column, row = result["at"]
        assert result["highest"] == pytest.approx(float(cosines[row, column]), abs=1e-5)
        assert result["highest"] == pytest.approx(float(cosines.max()), abs=1e-5)
        assert result["lowest"] == pytest.approx(float(cosines.min()), abs=1e-5)
        picture = np.array(Image.open(tmp_path / f"{Path(result['file_name']).stem}.png"))
        assert picture.shape == (640, 640, 3)


def test_a_film(demo, folder, tmp_path, capsys):
    """Four frames: the same picture has the same segments, and the film can be read again."""
    frames = [np.array(Image.open(folder / "in" / f"{i}.jpg")) for i in (0, 1, 1, 2)]
    with write_video(tmp_path / "in.mp4", rate=5) as film:
        for frame in frames:
            film.add(frame)
    argv = [
        *("--config-file", ZERO_SHOT, "--device", "cpu", "--output", str(tmp_path / "out")),
        *("--video", str(tmp_path / "in.mp4"), "--vocabulary", "red star", "--stuff", "grass;sand"),
    ]
    assert demo.main(argv) == 0 and "4 frames" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["in.mp4", "segments.json"]
    found = json.loads((tmp_path / "out" / "segments.json").read_text())
    assert {r["image_id"] for r in found} == {1, 2, 3, 4}
    assert {r["file_name"] for r in found} == {str(tmp_path / "in.mp4")}
    shown = Video(tmp_path / "out" / "in.mp4")
    assert shown.rate == 5 and [frame.shape for frame in shown] == [(640, 640, 3)] * 4
    short = [*argv[:-6], *("--video", str(tmp_path / "in.mp4"), "--max-frames", "2")]
    short += ["--similarity", "red star", "--output", str(tmp_path / "short")]
    assert demo.main(short) == 0
    assert len(list(Video(tmp_path / "short" / "in.mp4"))) == 2


def test_ctrl_c_ends_a_film_and_keeps_it(demo, tmp_path):
    frames = [np.full((32, 48, 3), value, np.uint8) for value in (0, 100, 200)]
    with write_video(tmp_path / "in.mp4", rate=5) as film:
        for frame in frames:
            film.add(frame)

    def view(frame, number):
        if number == 3:
            raise KeyboardInterrupt
        return frame, [{"image_id": number}]

    source = Video(tmp_path / "in.mp4")
    count, results = demo.show_video(source, view, tmp_path / "out.mp4", None)
    assert count == 2 and [r["image_id"] for r in results] == [1, 2]
    assert len(list(Video(tmp_path / "out.mp4"))) == 2


@pytest.mark.parametrize("name", ["absent.mp4", "text.mp4"])
def test_what_is_no_film_is_refused(demo, tmp_path, capsys, name):
    (tmp_path / "text.mp4").write_text("no film")
    output = tmp_path / "out"
    argv = ["--video", str(tmp_path / name), "--similarity", "a", "--output", str(output)]
    assert exit_code(lambda: demo.main(argv)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and name in error[0] and not output.exists()


def test_words_are_needed(demo, tmp_path, capsys):
    argv = ["--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert exit_code(lambda: demo.main(argv)) == 2
    assert "--vocabulary, or a phrase with --similarity" in capsys.readouterr().err
