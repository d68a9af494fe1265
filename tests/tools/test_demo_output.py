"""Where tools/demo.py writes, and where it refuses to."""

import os

import numpy as np
import pytest
from PIL import Image

from densedet.cli import exit_code
from densedet.video import write_video

ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(demo, capsys, *argv):
    """The error; the model does not exist, so that it is found before one is loaded."""
    words = () if "--vocabulary" in argv else ("--similarity", "star")
    argv = [*map(str, argv), *words, "--config-file", "absent.py"]
    assert exit_code(lambda: demo.main(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_inputs_are_never_overwritten(demo, tmp_path, capsys):
    pictures = tmp_path / "pics"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "a.png")
    with write_video(pictures / "in.mp4", rate=5) as film:
        film.add(np.zeros((32, 32, 3), np.uint8))
    (pictures / "segments.json").write_text('["star"]')
    (tmp_path / "link").symlink_to(pictures)
    before = contents(pictures)
    for path, argv in (
        (pictures / "a.png", ["--input", pictures]),
        (pictures / "in.mp4", ["--video", pictures / "in.mp4"]),
        (tmp_path / "link" / "a.png", ["--input", tmp_path / "link" / "a.png"]),
    ):
        error = refused(demo, capsys, *argv, "--output", pictures)
        assert error == f"error: {path} would be overwritten; choose another --output"
    words = ("--vocabulary", pictures / "segments.json", "--output", pictures)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    error = refused(demo, capsys, "--input", tmp_path / "b.jpg", *words)
    assert "segments.json would be overwritten" in error
    assert contents(pictures) == before
    # another name, or another folder, is no input
    (tmp_path / "b.jpg").rename(pictures / "b.jpg")
    assert "absent.py" in refused(demo, capsys, "--input", pictures / "b.jpg", "--output", pictures)
    assert "absent.py" in refused(demo, capsys, "--input", pictures, "--output", tmp_path / "out")


def test_the_output_is_a_folder(demo, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    error = refused(demo, capsys, "--input", "absent.jpg", "--output", tmp_path / "out")
    assert error == f"error: --output {tmp_path / 'out'} is a file; name a folder"
    assert (tmp_path / "out").read_text() == "mine"
    error = refused(demo, capsys, "--input", "absent.jpg", "--output", tmp_path / "out" / "below")
    assert error == f"error: --output {tmp_path / 'out'} is a file; name a folder"


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write
    error = refused(demo, capsys, "--input", "absent.jpg", "--output", tmp_path / "a" / "b")
    assert error == f"error: --output {tmp_path} cannot be written to; choose another"


@pytest.mark.parametrize("option", ["--input", "--output", "--config-file"])
def test_names_that_the_system_does_not_take_are_one_line(demo, tmp_path, capsys, option):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = {"--input": tmp_path / "a.png", "--output": tmp_path / "out", option: "n" * 300}
    argv = [str(word) for pair in words.items() for word in pair]
    assert exit_code(lambda: demo.main([*argv, "--vocabulary", "star"])) == 2
    assert (
        capsys.readouterr().err == f"error: {'n' * 300}: File name too long; choose another place\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_empty_phrase_is_refused_at_once(demo, tmp_path, capsys):
    argv = ["--input", tmp_path, "--output", tmp_path / "out", "--similarity", " "]
    assert exit_code(lambda: demo.main([*map(str, argv), "--config-file", "absent.py"])) == 2
    assert capsys.readouterr().err == "error: --similarity is empty: give a phrase\n"


def test_a_camera_below_0_is_refused(demo, tmp_path, capsys):
    assert "no camera -3" in refused(demo, capsys, "--webcam", "-3", "--output", tmp_path / "out")


@pytest.mark.parametrize(("size", "name"), [(1_000, "0.png"), (9_000, "segments.json")])
def test_a_full_disk_is_one_line(demo, tmp_path, capsys, full_disk, size, name):
    deep = tmp_path.joinpath(*["d" * 200] * 16)  # long names in the JSON
    deep.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16)).save(deep / f"{number}.jpg")
    argv = ["--config-file", ZERO_SHOT, "--input", str(deep), "--vocabulary", "star"]
    full_disk(size)
    assert exit_code(lambda: demo.main([*argv, "--output", str(tmp_path / "out")])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'out' / name} cannot be written: File too large")
    assert name not in contents(tmp_path / "out")
