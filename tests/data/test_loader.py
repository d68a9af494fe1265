"""The order and the augmentation of training samples depend on their number alone."""

import itertools
import random
import re

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from densedet.data.images import read_image
from densedet.data.loader import MAX_REDRAWS, build_test_loader, build_train_loader, seeded
from densedet.errors import ConfigError, DatasetError, ImageError

RECORDS = [{"id": i} for i in range(7)]


def draw_everything(record):
    """A mapper that draws from all three generators."""
    return {**record, "draws": (random.random(), np.random.rand(), torch.rand(()).item())}


def _batches(count, start=0, **options):
    loader = build_train_loader(RECORDS, draw_everything, 4, **{"seed": 5, **options})
    loader.start_iteration = start
    return list(itertools.islice(loader, count))


def test_every_epoch_is_another_permutation():
    ids = [s["id"] for batch in _batches(7) for s in batch]
    epochs = [ids[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [s["id"] for b in _batches(2, shuffle=False) for s in b] == [0, 1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize("start", [1, 5, 1000])
def test_any_start_gives_the_same_batches(start):
    if start == 1000:
        assert _batches(1, start) == _batches(2, start - 1)[1:]
    else:
        assert _batches(3, start) == _batches(3 + start)[start:]


def test_workers_do_not_change_anything():
    assert _batches(5, num_workers=2) == _batches(5)


def test_seeds_change_order_and_draws():
    one, two = _batches(2), _batches(2, seed=6)
    assert [s["id"] for b in one for s in b] != [s["id"] for b in two for s in b]
    draws = [s["draws"] for b in one for s in b]
    assert len(set(draws)) == 8


def test_ranks_split_each_batch(monkeypatch):
    whole = _batches(3, 2)
    parts = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(_batches(3, 2))
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    with pytest.raises(ConfigError, match="total_batch_size=3 cannot be split over 2 processes"):
        build_train_loader(RECORDS, draw_everything, 3)


def test_the_generators_of_the_process_are_left_alone():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    for workers in (0, 2):
        before = state()
        _batches(1, num_workers=workers)
        assert state() == before
    with pytest.raises(RuntimeError), seeded(1, 2):
        torch.rand(3)
        raise RuntimeError
    assert state() == before


def test_empty_samples_are_redrawn_only_on_request():
    def mapper(record):
        return {**record, "instances": [0] * (record["id"] % 2)}  # even ones are empty

    def ids(**options):
        loader = build_train_loader(RECORDS, mapper, 4, shuffle=False, **options)
        return [s["id"] for batch in itertools.islice(loader, 7) for s in batch]

    assert ids() == [i % 7 for i in range(28)]
    redrawn = ids(redraw_empty=True)
    assert redrawn == ids(redraw_empty=True)
    assert all(i % 2 for i in redrawn)
    assert redrawn[1:6:2] == [1, 3, 5]  # what was not empty stays
    assert len(set(redrawn[0::7] + redrawn[2::7])) > 1


def test_a_data_set_without_objects_ends_in_an_error():
    calls = []

    def mapper(record):
        calls.append(record["id"])
        return {"instances": []}

    loader = build_train_loader(RECORDS, mapper, 1, redraw_empty=True)
    with pytest.raises(DatasetError, match="50 other images were drawn and none has an object"):
        next(iter(loader))
    assert len(calls) == MAX_REDRAWS + 1
    assert set(calls) == set(range(7))


def test_empty_data_sets_and_none_are_refused():
    with pytest.raises(DatasetError, match="the training data set is empty"):
        build_train_loader([], draw_everything, 1)
    with pytest.raises(DatasetError, match="the test data set is empty"):
        build_test_loader([], draw_everything)
    with pytest.raises(DatasetError, match="returned None for record"):
        next(iter(build_train_loader(RECORDS, lambda record: None, 1)))


def test_the_test_loader_gives_every_record_once_in_order():
    loader = build_test_loader(RECORDS, dict, batch_size=3)
    assert [[s["id"] for s in batch] for batch in loader] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["train", "test"])
def test_an_error_of_a_worker_arrives_as_it_was_raised(tmp_path, kind, workers):
    file = tmp_path / "cut.jpg"
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(file)

    def mapper(record):
        return {"image": read_image(record["file_name"])}

    records = [{"file_name": str(file)}]
    if kind == "train":
        loader = build_train_loader(records, mapper, 2, num_workers=workers)
    else:
        loader = build_test_loader(records, mapper, num_workers=workers)
        assert len(loader) == 1
    file.write_bytes(file.read_bytes()[:-200])  # its header was looked at
    with pytest.raises(ImageError) as caught:
        next(iter(loader))
    assert re.fullmatch(r".*cut\.jpg is truncated or corrupt \(.*\); fetch.*", str(caught.value))
    assert "Traceback" not in str(caught.value)


def test_other_errors_of_a_worker_keep_their_traceback():
    loader = build_test_loader([{"a": 1}], lambda record: record["b"], num_workers=1)
    with pytest.raises(KeyError, match="Traceback"):
        list(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "num_workers=-1: give an integer >= 0"),
        ({"num_workers": 1.5}, "num_workers=1.5: give an integer >= 0"),
        ({"seed": -1}, "seed=-1: give an integer >= 0"),
        ({"prefetch_factor": 0, "num_workers": 1}, "prefetch_factor=0: give an integer >= 1"),
        ({"prefetch_factor": 2}, "prefetch_factor=2 is of worker processes, and num_workers=0"),
    ],
)
def test_numbers_that_are_none_are_refused_before_the_first_sample(options, message):
    with pytest.raises(ConfigError, match=message):
        build_train_loader([{"n": 1}], dict, 1, **options)
    if options.keys() == {"num_workers"}:
        with pytest.raises(ConfigError, match=message):
            build_test_loader([{"n": 1}], dict, **options)
