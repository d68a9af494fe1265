"""How a process ends."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from densedet.engine.ranks import RankError
from densedet.errors import ConfigError, ImageError, Terminated
from densedet.exits import exit_code, raising_on_sigterm


def raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("two\nlines"), 2, "error: two lines"),
        (RankError("rank 1 is gone"), 1, "error: rank 1 is gone"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated by SIGTERM"),
        (Terminated("--resume goes on"), 143, "terminated by SIGTERM: --resume goes on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.txt"),
            2,
            "error: a.txt cannot be written: No space left on device; make room, or choose "
            "another place",
        ),
        (OSError(errno.EACCES, "no", "b"), 2, "error: b: no; choose another place"),
    ],
)
def test_codes_and_lines(capsys, error, code, line):
    assert exit_code(raises(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        exit_code(lambda: len(Path("no/such/file").read_bytes()))


class Bad:
    """Records of which the second is damaged."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        if number:
            raise ImageError("b.jpg is truncated: copy it again")
        return number


def test_an_error_in_a_worker_of_the_loader_is_its_line(capsys):
    assert exit_code(lambda: list(DataLoader(Bad(), num_workers=1)) and 0) == 2
    assert capsys.readouterr().err == "error: b.jpg is truncated: copy it again\n"


def test_sigterm_is_raised_once_and_only_here():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), raising_on_sigterm():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # while things are tidied up
    signal.signal(signal.SIGTERM, before)
    with raising_on_sigterm():
        pass
    assert signal.getsignal(signal.SIGTERM) == before
    seen = []

    def work():
        with raising_on_sigterm():
            seen.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1]


def test_run_tool_ends_with_143():
    code = "from densedet.cli import run_tool; import time\n"
    code += "run_tool(lambda: (print('up', flush=True), time.sleep(3600))[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.terminate()
    out, err = process.communicate()
    assert (process.returncode, err) == (143, "terminated by SIGTERM\n")
