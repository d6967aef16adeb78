"""Results in order, and no more of them ahead than was agreed."""

import threading

import pytest

from ffc_ds.data.ahead import EACH, Ahead


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_few_wait(threads):
    begun, lock = [], threading.Lock()

    def work(number):
        with lock:
            begun.append(number)
        return number**2

    for place, result in enumerate(Ahead(work, range(50), threads)):
        assert result == place**2 and len(begun) <= place + 1 + EACH * threads
    assert sorted(begun) == list(range(50)) and len(Ahead(work, range(50), threads)) == 50


def test_what_is_raised_comes_in_its_turn_and_ends_the_work():
    begun = []

    def work(number):
        begun.append(number)
        return 1 // (number - 5)

    found = iter(Ahead(work, iter(range(1000)), 1))
    assert [next(found) for _ in range(5)] == [1 // (number - 5) for number in range(5)]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert len(begun) < 10
    with pytest.raises(TypeError, match="not known"):
        len(Ahead(work, iter(range(3)), 1))
