from __future__ import annotations

from torchsnow.serving.fair_order import FairOrder


def test_places_are_fair() -> None:
    order = FairOrder()
    assert [order.place(["a"]) for _ in range(3)] == [0, 1, 2]
    assert order.place(["b"]) == 0
    assert order.place(["a", "b"]) == 3
    assert order.place(["b"]) == 2  # what it shares with a hot task does not hold it back
    order.reached(2)
    assert order.place(["c"]) == 2
    assert (order.soonest({"a"}), order.soonest({"a", "c"}), order.soonest({"a", "d"})) == (4, 3, 2)
    order.forget(["a"])
    assert order.place(["a"]) == 3
