"""Files appear whole or not at all."""

import logging
import os
import re
import socket

import pytest
import torch

from densedet.clip import ClassEmbeddings, VocabularyEmbedder
from densedet.errors import DensedetError, OutputError
from densedet.files import atomic_folder, atomic_path, check_regular, write_text, writing
from densedet.vocabulary import Vocabulary


def test_a_block_that_succeeds_replaces_the_file(tmp_path):
    target = tmp_path / "deep" / "er" / "file.txt"
    for text in ("one", "two"):
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent and temporary.suffix == ".txt"
            temporary.write_text(text)
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [KeyError, OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("former")
    with pytest.raises(error) as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.type is error
    assert target.read_text() == "former"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("file/x.json", "folder"):
        with pytest.raises(OutputError) as caught, atomic_path(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert str(caught.value).startswith(f"{tmp_path / name} cannot be written: ")
        assert "check the permissions" in str(caught.value)
        assert isinstance(caught.value, DensedetError) and isinstance(caught.value, OSError)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_appears_whole_and_replaces_the_former(tmp_path):
    target = tmp_path / "deep" / "folder"
    for name in ("one", "two"):
        with atomic_folder(target) as temporary:
            assert os.listdir(temporary) == []
            (temporary / name).write_text("")
        assert os.listdir(target) == [name]
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as temporary:
        (temporary / "half").write_text("")
        raise KeyboardInterrupt
    assert os.listdir(target) == ["two"]
    assert os.listdir(target.parent) == ["folder"]


def test_a_folder_where_none_can_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/folder", "file"):
        with pytest.raises(OutputError) as caught, atomic_folder(tmp_path / name):
            pass
        assert str(caught.value).startswith(f"{tmp_path / name} cannot be written: ")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_folder_that_cannot_be_replaced_stays_whole(tmp_path, monkeypatch, error):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "former").write_text("")
    replace = os.replace

    def interrupted(source, destination):
        if os.path.basename(source) == "new":
            raise error
        replace(source, destination)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, OutputError)), atomic_folder(target):
        pass
    assert os.listdir(target) == ["former"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/former").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "new").write_text("")
    assert not (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "link") == ["new"]
    assert os.listdir(tmp_path / "elsewhere") == ["former"]


def test_a_full_disk_names_the_file(tmp_path):
    message = f"{tmp_path / 'a.png'} cannot be written: No space left on device; choose another"
    with pytest.raises(OutputError, match=re.escape(message)), writing(tmp_path / "a.png"):
        raise OSError(28, "No space left on device")


def test_the_file_that_was_named_first_stays_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught, writing(tmp_path), atomic_path(tmp_path / "file/x"):
        pass
    assert str(caught.value).startswith(f"{tmp_path / 'file/x'} cannot be written: ")


def test_text_is_written_whole(tmp_path):
    write_text(tmp_path / "folder/a.json", "\u00e4")
    assert (tmp_path / "folder/a.json").read_bytes() == b"\xc3\xa4"
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "folder/a.json", "\ud800")
    assert os.listdir(tmp_path / "folder") == ["a.json"]
    assert (tmp_path / "folder/a.json").read_bytes() == b"\xc3\xa4"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"), atomic_path(tmp_path / "x"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "cache").write_text("")
    vocabulary = Vocabulary.parse("cat;dog")
    embedder = VocabularyEmbedder(
        "densedet-tiny", "shipped", templates="single", cache_dir=tmp_path / "cache"
    )
    with caplog.at_level(logging.WARNING, "densedet"):
        embeddings = embedder(vocabulary)
    assert isinstance(embeddings, ClassEmbeddings)
    torch.testing.assert_close(embeddings.vectors.norm(dim=1), torch.ones(2))
    assert "class embeddings are not cached" in caplog.text


def test_only_regular_files_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    check_regular("file")
    check_regular(tmp_path / "link")
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name, error, reason in (
            ("pipe", OSError, "a named pipe, not a regular file"),
            ("socket", OSError, "a socket, not a regular file"),
            ("/dev/zero", OSError, "a device, not a regular file"),
            ("folder", IsADirectoryError, "Is a directory"),
            ("nothing", FileNotFoundError, "No such file"),
        ):
            with pytest.raises(error) as caught:
                check_regular(name)
            assert reason in caught.value.strerror
