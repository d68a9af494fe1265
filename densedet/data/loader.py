"""Loaders whose samples depend on their number, not on what was loaded before.

Sample ``n`` of a training is image ``permutation(seed, epoch)[n mod N]``, ``epoch = n div N``,
augmented with generators seeded from ``(seed, n)``. A training that is resumed at iteration ``i``
therefore sees what it would have seen, whatever the number of workers.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset

from densedet.data.orientation import look_at_images
from densedet.data.record_list import PackedRecords
from densedet.errors import ConfigError, DatasetError, DensedetError

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]
MAX_REDRAWS = 50
_ORDER, _SAMPLE, _REDRAW = 0, 1, 2  # keep the three uses of a seed apart


class TrainLoader:
    """An endless iterable of batches (``list[dict]``) of this process.

    Attributes:
        start_iteration: Number of the first batch; a resumed training sets it before iterating.
        seed: Of order and augmentation; None is the training's seed, 0 without a training.
    """

    def __init__(
        self,
        samples: "NumberedSamples",
        batch_size: int,
        seed: int | None,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        self.samples.seed = 0 if self.seed is None else self.seed
        loader = _CheckedLoader(
            _Catching(self.samples.__getitem__),
            batch_sampler=_BatchNumbers(self.start_iteration, self.batch_size),
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            collate_fn=trivial_batch_collator,
            # without its own generator a DataLoader draws from torch's, when its iterator is made
            generator=torch.Generator(),
        )
        return iter(loader)


def _packed(dataset: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(dataset, list):
        return dataset
    packed: Sequence[Any] = DatasetFromList(dataset, copy=False, serialize=PackedRecords)
    return packed


class _Catching(Dataset):
    """A function whose ``DensedetError`` is its result; :class:`_CheckedLoader` raises it.

    An exception that leaves a worker would arrive as the text of a traceback.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, argument: Any) -> Any:
        try:
            return self.function(argument)
        except DensedetError as error:
            return error

    __getitem__ = __call__


class _CheckedLoader(DataLoader):
    """A loader of lists that raises the errors among its samples in the main process."""

    def __iter__(self) -> Iterator[list[Any]]:  # type: ignore[override]
        return _without_errors(super().__iter__())


def _without_errors(batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    for batch in batches:
        for sample in batch:
            if isinstance(sample, DensedetError):
                raise sample
        yield batch


class _BatchNumbers:
    """Sample numbers of this rank's batches, from ``start`` on, for ever."""

    def __init__(self, start: int, batch_size: int) -> None:
        self.start, self.batch_size = start, batch_size
        self.rank, self.world = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[list[int]]:
        first = (self.start * self.world + self.rank) * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world * self.batch_size


class NumberedSamples(Dataset):
    """Training samples by global number, as described in the module.

    Args:
        dataset: Records in Detectron2's format, or any sequence the mapper understands.
        mapper: From a record to what the model takes.
        shuffle: False goes through the records in their order.
        redraw_empty: Replace a sample whose ``instances`` are empty by another image, drawn from
            the sample's own generator, at most 50 times.
    """

    def __init__(
        self, dataset: Sequence[Any], mapper: Mapper, shuffle: bool, redraw_empty: bool
    ) -> None:
        if len(dataset) == 0:
            raise DatasetError("the training data set is empty: nothing can be drawn from it")
        look_at_images(dataset, mapper)
        self.dataset = _packed(dataset)
        self.mapper = PicklableWrapper(mapper)  # so that a lambda reaches the workers
        self.shuffle = shuffle
        self.redraw_empty = redraw_empty
        self.seed = 0
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def index(self, number: int) -> int:
        """Return the index in the data set of sample ``number``."""
        epoch, position = divmod(number, len(self.dataset))
        if not self.shuffle:
            return position
        key = (self.seed, epoch)
        if key not in self._orders:
            generator = np.random.default_rng([_ORDER, self.seed, epoch])
            self._orders = {key: generator.permutation(len(self.dataset))}
        return int(self._orders[key][position])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return sample ``number`` (>= 0, without an upper end).

        Raises:
            DatasetError: 50 images drawn in a row had no objects left, or the mapper returned None.
        """
        index = self.index(number)
        redraws = np.random.default_rng([_REDRAW, self.seed, number])
        with seeded(_SAMPLE, self.seed, number):
            for _ in range(MAX_REDRAWS + 1):
                sample: dict[str, Any] | None = self.mapper(self.dataset[index])
                if sample is not None and not (self.redraw_empty and _is_empty(sample)):
                    return sample
                if not self.redraw_empty:
                    raise DatasetError(
                        f"the mapper returned None for record {index} of the data set"
                    )
                index = int(redraws.integers(len(self.dataset)))
        raise DatasetError(
            f"sample {number}: {MAX_REDRAWS} other images were drawn and none has an object left "
            "after augmentation; check the annotations and the crop, or set redraw_empty=False"
        )


def _is_empty(sample: dict[str, Any]) -> bool:
    return "instances" in sample and len(sample["instances"]) == 0


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed ``random``, numpy and torch's CPU generator from integers >= 0.

    Their states are restored afterwards.
    """
    state = random.getstate(), np.random.get_state(), torch.random.default_generator.get_state()
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.random.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.random.default_generator.set_state(state[2])


def _check_number(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}={value!r:.100}: give an integer >= {least}")


def build_train_loader(
    dataset: Sequence[Any],
    mapper: Mapper,
    total_batch_size: int,
    *,
    seed: int | None = None,
    num_workers: int = 0,
    shuffle: bool = True,
    redraw_empty: bool = False,
    prefetch_factor: int | None = None,
) -> TrainLoader:
    """Return the loader of a training, split over the processes.

    Args:
        dataset: e.g. ``L(densedet.data.get_records)(names="...")``.
        mapper: From a record to what the model takes.
        total_batch_size: Images of one iteration over all processes; divisible by their number.
        seed: Of order and augmentation; None: ``cfg.train.seed``.
        num_workers: Processes that load; the batches do not depend on it.
        shuffle, redraw_empty: see :class:`NumberedSamples`.
        prefetch_factor: Batches each worker loads ahead; None: torch's default.

    Raises:
        ConfigError: the batch cannot be split, or a number is none of processes, batches or a seed.
        DatasetError: the data set is empty, or an image of a sample has not the size of its record.
        ImageError: an image of a sample is missing or is no image.
    """
    world = comm.get_world_size()
    _check_number("num_workers", num_workers, 0)
    if seed is not None:
        _check_number("seed", seed, 0)
    if prefetch_factor is not None:
        _check_number("prefetch_factor", prefetch_factor, 1)
        if num_workers == 0:
            raise ConfigError(
                f"prefetch_factor={prefetch_factor} is of worker processes, and num_workers=0; "
                "leave it out"
            )
    if total_batch_size < 1 or total_batch_size % world:
        raise ConfigError(
            f"total_batch_size={total_batch_size} cannot be split over {world} processes"
        )
    samples = NumberedSamples(dataset, mapper, shuffle, redraw_empty)
    logger.info(
        "Training on %d records, %d a process and step", len(dataset), total_batch_size // world
    )
    return TrainLoader(samples, total_batch_size // world, seed, num_workers, prefetch_factor)


def build_test_loader(
    dataset: Sequence[Any], mapper: Mapper, num_workers: int = 0, batch_size: int = 1
) -> "DataLoader[Any]":
    """Return a loader that gives every record once, over all processes together, in order.

    Raises:
        ConfigError, DatasetError, ImageError: see :func:`build_train_loader`.
    """
    _check_number("num_workers", num_workers, 0)
    _check_number("batch_size", batch_size, 1)
    if len(dataset) == 0:
        raise DatasetError("the test data set is empty: there is nothing to evaluate")
    look_at_images(dataset, mapper)
    return _CheckedLoader(
        MapDataset(_packed(dataset), _Catching(mapper)),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)),
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
    )
