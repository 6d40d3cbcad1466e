"""What callers share: room, quotas, and turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import OverloadedError
from service.serving import quotas
from service.serving.quotas import UNLIMITED, Quota, Quotas
from service.serving.sharing import SharedRoom


def test_one_caller_may_fill_the_room_and_another_still_gets_its_share():
    room = SharedRoom(100, 100)
    assert room.take("hostile", 100)
    assert not room.take("hostile", 1)
    assert room.take("honest", 50)
    assert not room.take("honest", 1)
    assert room.take("third", 33)
    room.give_back("hostile", 100)
    assert room.take("honest", 17)
    assert (room.total, dict(room.held)) == (100, {"honest": 67, "third": 33})


def test_without_spare_room_a_full_room_is_full():
    room = SharedRoom(100, 0)
    assert room.take("a", 100)
    assert not room.take("b", 1)


def test_what_nobody_shares_the_room_with_may_exceed_it():
    room = SharedRoom(100, 25)
    assert room.take("a", 90)
    assert room.take("a", 90, own=90)
    assert not room.take("a", 1, own=90)  # of another request of the same caller
    assert SharedRoom(100, 0).take("a", 1000)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 120), st.booleans())))
def test_the_room_and_its_spare_are_never_exceeded_by_several(steps):
    room, held = SharedRoom(100, 50), []
    for caller, amount, gives_back in steps:
        if gives_back and held:
            room.give_back(*held.pop())
        elif room.take(caller, amount):
            held.append((caller, amount))
        assert room.total == sum(amount for _, amount in held)
        assert room.total <= 150 or len([amount for _, amount in held if amount]) == 1
        assert all(amount > 0 for amount in room.held.values())


def test_a_caller_without_a_quota_is_never_refused():
    shared = Quotas()
    with shared.admitted("a", UNLIMITED, 10**9), shared.admitted("a", UNLIMITED, 10**9):
        assert not shared.usages


def test_rows_at_a_time_are_bounded_and_given_back_after_any_end():
    shared, quota = Quotas(), Quota(concurrent_rows=10)
    with shared.admitted("a", quota, 6):
        with pytest.raises(OverloadedError, match="10 rows in progress"), shared.admitted("a", quota, 5):
            pass
        with shared.admitted("b", quota, 5), shared.admitted("a", quota, 4):
            pass
    with pytest.raises(ValueError, match="x"), shared.admitted("a", quota, 10):
        raise ValueError("x")
    with shared.admitted("a", quota, 50):  # alone, a larger request passes
        pass
    assert shared.usages["a"].rows == 0


def test_rows_a_second_are_bounded_and_the_error_says_when_to_return(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(quotas.time, "monotonic", lambda: now)
    shared, quota = Quotas(), Quota(rows_per_s=10)

    def send(rows):
        with shared.admitted("a", quota, rows):
            pass

    send(10)
    with pytest.raises(OverloadedError) as caught:
        send(5)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    now += 0.5
    send(5)
    now += 1
    send(100)  # at once, and ten seconds of silence afterwards
    now += 8.9
    with pytest.raises(OverloadedError) as caught:
        send(10)
    assert caught.value.retry_after_s == pytest.approx(1.1)
    now += 1.1
    send(10)
