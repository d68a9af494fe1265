"""Timing in turn: who is called when, and the figures that come out of given times."""

import pytest
import torch

from densedet.benchmark.timing import Timing, compare, format_table, row, time_in_turn

CPU = torch.device("cpu")


def test_sides_take_turns_and_the_warm_up_is_not_counted():
    calls: list[str] = []
    times = time_in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        CPU,
        repeats=2,
        warmup=1,
        before={"b": lambda: calls.append("before b")},
    )
    assert calls == ["a", "before b", "b"] * 3
    assert {name: len(timing.seconds) for name, timing in times.items()} == {"a": 2, "b": 2}
    assert all(seconds >= 0 for timing in times.values() for seconds in timing.seconds)


def test_the_speed_up_is_the_median_of_the_pairs():
    ours, reference = Timing((1.0, 2.0, 8.0)), Timing((4.0, 4.0, 8.0))
    assert compare(ours, reference) == {
        "ours": {"median_s": 2.0, "lower_quartile_s": 1.5, "upper_quartile_s": 5.0},
        "reference": {"median_s": 4.0, "lower_quartile_s": 4.0, "upper_quartile_s": 6.0},
        "speedup": 2.0,  # of 4, 2 and 1
        "speedup_quartiles": [1.5, 3.0],
    }


def test_one_repeat_is_its_own_quartiles():
    assert compare(Timing((2.0,)), Timing((3.0,)))["speedup_quartiles"] == [1.5, 1.5]


def test_sides_of_different_length_are_not_compared():
    with pytest.raises(ValueError):
        compare(Timing((1.0, 2.0)), Timing((1.0,)))


def test_table():
    lines = [row("step", {"ours": 1.0, "reference": 12.5}, "{:.1f} s", "12.5"), ["a", "", "2", ""]]
    assert format_table(("what", "ours", "reference", "ratio"), lines) == (
        "what   ours  reference  ratio\nstep  1.0 s     12.5 s   12.5\na                    2"
    )
