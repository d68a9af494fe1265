"""Hooks that Detectron2 lacks, and two of its own with a flaw mended."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from densedet.engine.distributed import set_timeout
from densedet.engine.options import TrainOptions


@runtime_checkable
class ResultWeights(Protocol):
    """A hook for a training whose result has other weights than those that train."""

    def evaluation_weights(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give ``model`` the weights of the result inside a block, in every process."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the result beside a checkpoint in ``folder``; called by rank 0."""


@contextmanager
def evaluation_weights(built: Iterable[HookBase], model: nn.Module) -> Iterator[None]:
    """Enter ``evaluation_weights(model)`` of every hook that has it."""
    with ExitStack() as stack:
        for hook in built:
            if isinstance(hook, ResultWeights):
                stack.enter_context(hook.evaluation_weights(model))
        yield


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

    Args:
        eval_period, eval_function: As of Detectron2's hook.
        options: Say how long the processes wait for each other, in a step and in an evaluation,
            where rank 0 may have to score alone.
    """

    _finished = False

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Any], options: TrainOptions
    ) -> None:
        super().__init__(eval_period, eval_function)
        self._options = options

    def before_train(self) -> None:
        """Have the processes wait as long as a step may take."""
        set_timeout(self._options.seconds("steps"))

    def _do_eval(self) -> None:
        set_timeout(self._options.seconds("evaluation"))
        super()._do_eval()
        set_timeout(self._options.seconds("steps"))

    def after_step(self) -> None:
        """Evaluate if it is time."""
        self._finished = self.trainer.iter + 1 >= self.trainer.max_iter
        super().after_step()

    def after_train(self) -> None:
        """Evaluate the finished model."""
        if self._finished:
            super().after_train()


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook; ``max_to_keep`` also counts the files of the part before a resume.

    Args:
        checkpointer: Saves, and knows the model and the folder.
        period: Iterations between two checkpoints.
        results: What is exported before each checkpoint, so that a training that is killed between
            the two does it again.
        **kwargs: As of Detectron2's hook.
    """

    def __init__(
        self,
        checkpointer: Any,
        period: int,
        results: Sequence[ResultWeights] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpointer, period, **kwargs)
        self.results = results

    def after_step(self) -> None:
        """Save if it is time: rank 0 does, with what the other processes have to be remembered."""
        if self._due(self.trainer.iter):
            self.trainer.gather_numbers()
        if comm.is_main_process():
            super().after_step()

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Export and save if it is time."""
        if self._due(iteration):
            for hook in self.results:
                hook.export(self.checkpointer.model, Path(self.checkpointer.save_dir))
        super().step(iteration, **kwargs)

    def _due(self, iteration: int) -> bool:
        last = self.max_iter is not None and iteration >= self.max_iter - 1
        return last or (iteration + 1) % self.period == 0

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
