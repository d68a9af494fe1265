"""Hooks that Detectron2 lacks, and two of its own with a flaw mended."""

import random
import re
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm


class SeedEveryStep(HookBase):
    """Seed Python's, numpy's and torch's generators from (seed, iteration, rank) before each step.

    The random choices of a step (proposal sampling, dropout) then do not depend on what happened
    before, so that a resumed training makes the same ones.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed all generators."""
        seed_everything(self.seed, self.trainer.iter, comm.get_rank())


def seed_everything(*key: int) -> None:
    """Seed the generators of ``random``, numpy and torch (all devices) from integers >= 0."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class EvalHook(hooks.EvalHook):
    """Evaluate every ``eval_period`` iterations and after the last one, but not after a failure.

    Detectron2's hook also runs when the *last* iteration raises.
    """

    _finished = False

    def after_step(self) -> None:
        """Evaluate if it is time."""
        self._finished = self.trainer.iter + 1 >= self.trainer.max_iter
        super().after_step()

    def after_train(self) -> None:
        """Evaluate the finished model."""
        if self._finished:
            super().after_train()


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook; ``max_to_keep`` also counts the files of the part before a resume."""

    def before_train(self) -> None:
        """Find the earlier checkpoints of a training that is resumed."""
        super().before_train()
        pattern = re.compile(rf"{re.escape(self.file_prefix)}_(\d{{7,}})\.pth")
        found = []
        for file in Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_*.pth"):
            match = pattern.fullmatch(file.name)
            if match and int(match[1]) < self.trainer.start_iter:
                found.append((int(match[1]), str(file)))
        self.recent_checkpoints = [file for _, file in sorted(found)]
