"""What a server of pages leaves on its machine."""

import os
import time

from densedet.web import remove_old


def test_results_are_removed_after_an_hour(tmp_path):
    for name, age in (("results-a.json", 3_700), ("results-b.json", 10), ("upload.png", 3_700)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    remove_old(tmp_path, 3_600)
    assert {path.name for path in tmp_path.iterdir()} == {"results-b.json", "upload.png"}
