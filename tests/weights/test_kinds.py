"""What a file is, whatever its name says, and the remedy."""

import io
import json
import logging
import os
import pickle
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from densedet.clip.checkpoints import read_state_dict
from densedet.engine.checkpoint import read_checkpoint
from densedet.errors import CheckpointError
from densedet.modeling.denseclip_checkpoint import read_released
from densedet.weights import (
    load_strictly,
    read_safetensors,
    read_torch_file,
    read_weights,
    write_safetensors,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 599\n"


def archive(kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=content, mode="w") as file:
            file.addfile(tarfile.TarInfo("weights.pt"))
    else:
        with zipfile.ZipFile(content, "w") as file:
            file.writestr({"npz": "a.npy", "zip": "weights.txt"}[kind], b"x" * 9)
    return content.getvalue()


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        (b"", "the file is empty", "download"),
        (b"\n<!DOCTYPE html><html><body>404", "a web page, not weights", "download again"),
        (b"<html>sign in</html>", "a web page, not weights", "open the address in a browser"),
        (POINTER, "a pointer of git-lfs", "`git lfs pull`"),
        (b"\x1f\x8b\x08\x00" + b"x" * 30, "a gzip archive", "unpack it"),
        (b"\xfd7zXZ\x00" + b"x" * 30, "an xz archive", "unpack it"),
        (archive("tar"), "a tar archive", "unpack it"),
        (archive("zip"), "a zip archive without weights of torch", "unpack it"),
        (archive("npz"), "an archive of NumPy", "torch.save"),
        (b"\x93NUMPY\x01\x00", "an array of NumPy", "torch.save"),
        (b'{"weight_map": {}}', "JSON text, not weights", "the file of weights itself"),
        (pickle.dumps({"model": {"a": np.ones(3)}}), "a plain pickle.*Detectron2", "torch.save"),
        (pickle.dumps({"model": 3}), "a plain pickle.*Detectron2", "torch.as_tensor"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path, data, what, remedy):
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    for read in (read_state_dict, read_checkpoint, read_released):
        with pytest.raises(CheckpointError, match=rf"weights\.pt.*{what}.*{remedy}") as caught:
            read(str(path))
        assert "\n" not in str(caught.value)
    path = path.rename(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        read_state_dict(path)


def test_an_exported_program_is_no_file_of_weights(tmp_path):
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "a.pt2")
    with pytest.raises(CheckpointError, match=r"a\.pt2: a program of torch\.export"):
        read_state_dict(tmp_path / "a.pt2")


def test_safetensors_are_read_under_any_name(tmp_path):
    for name in ("pytorch_model.bin", "x.pth", "x"):
        save_file(STATE, tmp_path / name)
        assert torch.equal(read_state_dict(tmp_path / name)["a.weight"], STATE["a.weight"])
        assert read_checkpoint(str(tmp_path / name))["model"].keys() == STATE.keys()
    with pytest.raises(CheckpointError, match="a safetensors file; rename it"):
        read_torch_file(tmp_path / "x.pth")
    torch.save(STATE, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"not safetensors as its name says; rename it"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_pipes_devices_and_folders_are_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder").mkdir()
    for read in (read_state_dict, read_checkpoint, read_released, read_safetensors):
        with pytest.raises(CheckpointError, match="no checkpoint file.*pipe"):
            read(str(tmp_path / name))
        with pytest.raises(CheckpointError, match="no checkpoint file.*device"):
            read("/dev/zero")
        with pytest.raises(CheckpointError, match="a folder; name the checkpoint file in it"):
            read(str(tmp_path / "folder"))


@pytest.mark.parametrize("count", [20_001, 300_000])
def test_a_list_of_too_many_tensors_is_refused_quickly(tmp_path, count):
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{i:x}": entry for i in range(count)}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: names more than 20000 tensors"):
        read_state_dict(tmp_path / "a.safetensors")
    assert time.perf_counter() - start < 1


def test_brackets_in_the_metadata_are_no_tensors(tmp_path):
    words = json.dumps([{"name": f"cat{i}"} for i in range(21_000)])
    write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {"vocabulary": words})
    assert read_safetensors(tmp_path / "a.safetensors")[1]["vocabulary"] == words


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(65 << 20))
    with pytest.raises(CheckpointError, match=r"a\.pt: an archive that unpacks to more"):
        read_state_dict(tmp_path / "a.pt")


def test_an_archive_without_checksums_is_read(tmp_path):
    """torch writes such where it is told to."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_state_dict(tmp_path / "a.pt")["a.weight"], STATE["a.weight"])


def test_a_file_without_a_checksum_says_what_can_be_done(tmp_path, caplog):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with caplog.at_level(logging.INFO, logger="densedet"):
        read_state_dict(tmp_path / "old.pth")
    assert "old.pth has no checksum" in caplog.text and "save it again" in caplog.text


def test_the_same_content_gives_the_same_bytes(tmp_path):
    notes = {"format": "pt", "model": "ä", "origin": '{"a": "\\u001f"}', "z": "\n"}
    for index in range(8):  # safetensors' own order of the metadata is by chance
        write_safetensors(tmp_path / f"{index}", STATE, notes)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert {**notes, "sha256": ""}.keys() == read_safetensors(tmp_path / "0")[1].keys()
    assert read_safetensors(tmp_path / "0")[1]["origin"] == notes["origin"]


def test_whole_numbers_are_no_weights():
    """Quantised weights would be loaded as fractions of another size."""
    model = nn.BatchNorm1d(3)
    state = {**model.state_dict(), "weight": torch.ones(3, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"1 of whole numbers.*: weight torch\.int8"):
        load_strictly(model, state, "x.pt")
    half = {name: value.half() for name, value in model.state_dict().items()}  # counters as well
    load_strictly(model, half, "x.pt")
