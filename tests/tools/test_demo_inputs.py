"""Which images tools/demo.py finds, what it says of the others, and how it ends where one fails."""

import json
import os
import re
import threading

import numpy as np
import pytest
from PIL import Image, features

from densedet.cli import exit_code
from densedet.data.images import read_image
from densedet.data.shapes_world_scenes import make_scene
from densedet.errors import ImageError

ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"
NAMES = {
    "a.tif": "TIFF",
    "b.TIFF": "TIFF",
    "c.jfif": "JPEG",
    "d.JPG": "JPEG",
    "e.gif": "GIF",
    "f.webp": "WEBP",
    "g.bmp": "BMP",
    "h.jpe": "JPEG",
    "i.ppm": "PPM",
    "j.jp2": "JPEG2000",
    "k.PnG": "PNG",
    "l.mpo": "JPEG",
}
if features.check("avif"):
    NAMES["m.avif"] = "AVIF"


@pytest.fixture
def pictures(tmp_path):
    """A folder with an image of each format, a text and what systems leave behind."""
    folder = tmp_path / "in"
    folder.mkdir()
    image = Image.fromarray(make_scene(0, "val", 0).image)
    for name, kind in NAMES.items():
        image.save(folder / name, format=kind)
    (folder / "notes.txt").write_text("no image")
    (folder / ".DS_Store").write_text("no image")
    (folder / "below.jpg").mkdir()
    return folder


def test_every_format_of_a_folder_is_looked_at(demo, pictures, tmp_path, capsys):
    output = tmp_path / "out"
    argv = ["--config-file", ZERO_SHOT, "--device", "cpu", "--vocabulary", "1. star\n2. ring"]
    assert demo.main([*argv, "--input", str(pictures), "--output", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    count = len(NAMES)
    assert said[0] == (
        f"{pictures}: 1 of {count + 1} files are no images, such as notes.txt: left out"
    )
    assert said[1] == "2 categories: star; ring"
    assert said[2].startswith(f"{count} images, ")
    assert {path.stem for path in output.glob("*.png")} == {name[0] for name in NAMES}
    found = json.loads((output / "segments.json").read_text())
    assert {result["image_id"] for result in found} == set(range(1, count + 1))


def test_patterns_and_files(demo, pictures, capsys):
    found = [path.name for path in demo.find_images([str(pictures / "[ab]*")])]
    assert found == ["a.tif", "b.TIFF"]
    assert capsys.readouterr().out == ""
    everything = demo.find_images([str(pictures / "**")])
    assert [path.name for path in everything] == sorted(NAMES)
    # a file that is named is taken by its content
    assert demo.find_images([str(pictures / "notes.txt")]) == [pictures / "notes.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no such image, folder with images, or pattern that matches"),
        (["a.txt", "b.json"], "none of 2 files, such as a.txt, is an image by its suffix; known"),
        (["sub/"], r"no such image.*; for folders below it write '.*/\*\*/\*.jpg'"),
    ],
)
def test_a_folder_without_images(demo, tmp_path, content, message):
    for name in content:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(ImageError, match=f"^{tmp_path}: {message}"):
        demo.find_images([str(tmp_path)])


def test_frames_and_pages_are_said(demo, tmp_path, capsys):
    frames = [Image.fromarray(make_scene(0, "val", i).image) for i in range(3)]
    for name in ("a.gif", "b.tif", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "d.mpo", format="MPO", save_all=True, append_images=frames[1:])
    demo.check_images(sorted(tmp_path.iterdir()))
    said = "a.gif has 3 frames or pages, and 2 more files have several: the first is looked at\n"
    assert capsys.readouterr().out == said
    for name in ("b.tif", "c.webp"):
        first = np.asarray(frames[0]).astype(int)
        assert np.abs(read_image(tmp_path / name) - first).mean() < 8


def run(demo, *argv):
    return exit_code(lambda: demo.main([*map(str, argv), "--device", "cpu"]))


@pytest.mark.parametrize("option", ["--input", "--vocabulary", "--video"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_what_is_no_regular_file_is_one_line_and_never_hangs(demo, tmp_path, capsys, option, kind):
    if (kind, option) == ("folder", "--input"):
        pytest.skip("a folder of images")
    path = tmp_path / kind if kind != "/dev/zero" else kind
    os.mkfifo(path) if kind == "pipe" else kind == "folder" and path.mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    words = {"--input": tmp_path / "a.png", "--vocabulary": "star", option: path}
    if option == "--video":
        del words["--input"]
    argv = [word for pair in words.items() for word in pair]
    timer = threading.Timer(20, os.abort)  # a hang is no failed assertion
    timer.start()
    assert run(demo, *argv, "--output", tmp_path / "out", "--config-file", ZERO_SHOT) == 2
    timer.cancel()
    (line,) = capsys.readouterr().err.splitlines()
    what = {"pipe": "a named pipe", "folder": "Is a directory"}.get(kind, "a device")
    assert line.startswith("error: ") and str(path) in line and what in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--max-pixels": "0"}, "--max-pixels 0 must be at least 1"),
        ({"--max-pixels": "many"}, "--max-pixels: invalid int value: 'many'"),
        ({"--input": "13000.png"}, "13,000 x 13,000 pixels, more than the limit of 89,478,485"),
        ({"--input": "16bit.png"}, "16bit.png has more than 8 bits a channel"),
        ({"--input": "half.tif"}, "half.tif is truncated or corrupt"),
        ({"--input": "eps.jpg"}, "eps.jpg is not an image of a format that is read here"),
        ({"--input": "empty.gif"}, "empty.gif is not an image"),
        ({"--vocabulary": "words.yaml"}, "words.yaml: line 2 has a YAML alias"),
        ({"--vocabulary": "words.json"}, "words.json: cannot be decoded"),
        ({"--vocabulary": "words.csv"}, "words.csv: unknown kind of file; a vocabulary is a .json"),
        ({"--vocabulary": "empty.txt"}, "empty.txt: the vocabulary is empty"),
        ({"--vocabulary": "1. cat\ndog\n3. cow"}, "line 2 has no number, others have"),
        ({"--stuff": "Star"}, "category 2: the label 'Star' is already used (as 'star')"),
        ({"--show": "ring"}, "the vocabulary has no label 'ring'"),
        ({"--task": "instance"}, "--task instance: ZeroShotSegmentor has semantic"),
    ],
)
def test_wrong_use_is_one_line(demo, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    config = demo.Path(__file__).parents[2] / ZERO_SHOT
    Image.new("RGB", (32, 32)).save("a.png")
    Image.new("1", (13_000, 13_000)).save("13000.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("16bit.png")
    Image.new("RGB", (32, 32)).save("eps.jpg", format="EPS")
    Image.fromarray(make_scene(0, "val", 0).image).save("half.tif")
    whole = demo.Path("half.tif").read_bytes()
    demo.Path("half.tif").write_bytes(whole[: len(whole) // 2])
    for name, text in (
        ("empty.gif", ""),
        ("empty.txt", "\n"),
        ("words.csv", "cat,dog"),
        ("words.yaml", "a: &a [b]\nnames: *a"),
        ("words.json", "[" * 200_000),
    ):
        demo.Path(name).write_text(text)
    options = {"--input": "a.png", "--vocabulary": "star", "--output": "out", **change}
    argv = [word for pair in options.items() for word in pair]
    assert run(demo, *argv, "--config-file", config) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line and len(line) < 400
    assert not demo.Path("out").exists()


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_what_was_finished_is_kept_and_the_bad_one_is_named(demo, tmp_path, failure):
    """Images that can be read, and the third is too much."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.new("RGB", (8, 6)).save(path)

    def view(image, number):
        if number == 3:
            raise failure
        return image, [{"image_id": number}]

    output = tmp_path / "out"
    expected = (
        f"image {paths[2]} of 8 x 6 pixels needs more memory than there is; .* --max-pixels; "
        f"2 of 4 images are finished, in {re.escape(str(output))}"
    )
    with pytest.raises(ImageError, match=expected):
        demo.show_images(paths, view, output, output / "segments.json")
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "1.png", "segments.json"]
    found = json.loads((output / "segments.json").read_text())
    assert [(r["image_id"], r["file_name"]) for r in found] == [
        (1, str(paths[0])),
        (2, str(paths[1])),
    ]


def test_ctrl_c_keeps_what_was_finished(demo, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.new("RGB", (8, 6)).save(path)

    def view(image, number):
        if number == 2:
            raise KeyboardInterrupt
        return image, [{"image_id": number}]

    with pytest.raises(KeyboardInterrupt):
        demo.show_images(paths, view, tmp_path / "out", tmp_path / "out" / "segments.json")
    assert len(json.loads((tmp_path / "out" / "segments.json").read_text())) == 1
    # a defect keeps its traceback
    with pytest.raises(RuntimeError, match="shape"):
        demo.show_images(paths, _defect, tmp_path, tmp_path / "a.json")


def _defect(image, number):
    raise RuntimeError("another shape")
