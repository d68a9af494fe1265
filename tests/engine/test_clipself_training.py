"""CLIPSelf under torchrun: two processes are one with the doubled batch."""

import torch

from densedet.engine.checkpoint import read_checkpoint


def weights(folder):
    return read_checkpoint(str(folder / "out" / "model_final.pth"))["model"]


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, run_tool):
    found = []
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        done = run_tool(
            "clipself",
            f"train.output_dir='{folder}/out'",
            f"dataloader.register.0.root='{tmp_path}/data'",
            nproc=processes,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(weights(folder))
    one, two = found
    moved = 0.0
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
        if name.startswith("student.") and value.is_floating_point():
            start = one[name.replace("student.", "teacher.", 1)]
            moved = max(moved, (value - start).abs().max().item())
    assert moved > 1e-3  # far more than the tolerance
