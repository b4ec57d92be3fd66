"""Parts computed ahead: in order, few at a time, errors where they are asked for."""

import threading

import pytest

from stfm_jax.runtime import ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_order(threads):
    assert list(ahead.computed(lambda i: 2 * i, range(50), threads, 7)) == list(range(0, 100, 2))
    assert list(ahead.computed(lambda i: i, [], threads, 7)) == []


def test_parts_are_made_as_they_are_needed():
    made = []

    def parts():
        for i in range(100):
            made.append(i)
            yield i

    found = ahead.computed(lambda i: i, parts(), 2, 5)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    assert made == list(range(7))
    found.close()
    assert len(made) == 7


def test_threads_work_side_by_side():
    both = threading.Barrier(2, timeout=30)
    assert len(list(ahead.computed(lambda _: both.wait(), range(2), 2, 2))) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_part_raises_is_raised(threads):
    found = ahead.computed(lambda i: 1 // (i - 2), range(9), threads, 3)
    assert [next(found), next(found)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_several_devices_share_each_part():
    assert ahead.threads(4) == 1
    assert ahead.threads(1) >= 1
