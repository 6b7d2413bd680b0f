"""Rule 8: room kept for the first request that has been blocked for long, and what is filled in beside it."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as some

from scheduler.core.cluster import Cluster
from scheduler.core.reservation import Shadow, reserve, runs_into
from scheduler.core.types import Lease, Micros, Node, Placement, Pool, Request, Reservation, Shape

NOW = Micros(1_000)
POOL = Pool("gpu", "h100")


def shape(accelerators: int, members: int = 1) -> Shape:
    return Shape("h100", (accelerators, 0, 0), members)


def lease(name: str, accelerators: int, on: str, *, left: int, granted: int = 0) -> Lease:
    """That runs for `left` microseconds more at most."""
    return Lease(
        lease_id=name,
        job_id=name,
        queue="q",
        shape=shape(accelerators),
        priority=500,
        submitted=NOW,
        run_micros=NOW + left - granted,
        pool="gpu",
        placement=((on, 1),),
        incarnations=("1",),
        granted=Micros(granted),
        expires=NOW,
    )


def cluster(sizes: dict[str, int], *leases: Lease) -> Cluster:
    nodes = [Node(name, "1", "gpu", (size, 64, 64), NOW) for name, size in sizes.items()]
    made = Cluster((POOL,), nodes, frozenset(), NOW)
    for each in leases:
        made.take_lease(each)
    return made


def test_it_starts_when_declared_run_times_make_room_and_keeps_that_place() -> None:
    leases = (lease("x", 8, "a", left=900), lease("y", 8, "b", left=300), lease("z", 4, "c", left=600))
    three = cluster({"a": 8, "b": 8, "c": 8}, *leases)
    found = reserve(three, "r", shape(8, 2), "gpu", leases)
    assert found == Shadow(Reservation("r", "gpu", Micros(NOW + 600), (("b", 1), ("c", 1))), taken_away=2)
    assert three.reservation("gpu") == found.reservation


def test_a_lease_that_runs_over_its_time_is_expected_to_end_now() -> None:
    leases = (lease("x", 8, "a", left=-500),)
    assert reserve(cluster({"a": 8}, *leases), "r", shape(8), "gpu", leases).reservation == Reservation(
        "r", "gpu", NOW, (("a", 1),)
    )


def test_what_never_fits_reserves_nothing() -> None:
    leases = (lease("x", 8, "a", left=900),)
    one = cluster({"a": 8}, *leases)
    assert reserve(one, "r", shape(9), "gpu", leases) == Shadow(None, taken_away=1)
    assert one.reservation("gpu") is None


def test_who_ends_in_time_may_use_what_is_reserved_and_who_does_not_may_not() -> None:
    leases = (lease("x", 4, "a", left=900),)
    one = cluster({"a": 8}, *leases)
    kept = reserve(one, "r", shape(8), "gpu", leases).reservation
    assert not runs_into(kept, "short", 900, NOW)
    assert one.place(shape(4), "gpu") == (("a", 1),)
    assert runs_into(kept, "long", 901, NOW)
    assert one.place(shape(4), "gpu", lasting=True) is None


def test_its_owner_does_not_run_into_it() -> None:
    leases = (lease("x", 4, "a", left=900),)
    kept = reserve(cluster({"a": 8}, *leases), "r", shape(8), "gpu", leases).reservation
    assert not runs_into(kept, "r", 10_000, NOW)
    assert not runs_into(None, "long", 10_000, NOW)


def test_who_runs_on_may_use_what_the_reservation_leaves() -> None:
    leases = (lease("x", 4, "a", left=900), lease("y", 2, "a", left=5_000))
    one = cluster({"a": 12}, *leases)
    reserve(one, "r", shape(7), "gpu", leases)
    # At its start 2 of 12 are held, and 7 reserved: 3 are left.
    assert one.place(shape(4), "gpu", lasting=True) is None
    assert one.place(shape(3), "gpu", lasting=True) == (("a", 1),)
    one.take((("a", 1),), (3, 0, 0), Micros(NOW + 5_000))
    assert one.place(shape(1), "gpu", lasting=True) is None
    assert one.place(shape(3), "gpu") == (("a", 1),)


def test_leases_that_end_at_the_same_time_are_all_gone_at_its_start() -> None:
    leases = (lease("x", 4, "a", left=900), lease("y", 4, "a", left=900))
    one = cluster({"a": 12}, *leases)
    assert reserve(one, "r", shape(5), "gpu", leases).taken_away == 1
    assert one.place(shape(4), "gpu", lasting=True) == (("a", 1),)
    one.drop_reservations()
    assert one.reservation("gpu") is None


@given(
    some.lists(some.integers(1, 6), min_size=1, max_size=4),
    some.lists(some.tuples(some.integers(1, 4), some.integers(0, 3), some.integers(-1, 4)), max_size=8),
    some.tuples(some.integers(1, 5), some.integers(1, 3)),
    some.lists(some.tuples(some.integers(1, 3), some.integers(0, 5)), max_size=8),
)
def test_nothing_that_is_filled_in_delays_it(
    sizes: list[int],
    running: list[tuple[int, int, int]],
    wanted: tuple[int, int],
    filled: list[tuple[int, int]],
) -> None:
    free = dict(enumerate(sizes))
    leases: list[Lease] = []
    for number, (accelerators, on, left) in enumerate(running):
        if free.get(on, 0) >= accelerators:
            free[on] -= accelerators
            leases.append(lease(f"l{number}", accelerators, f"n{on}", left=100 * left))
    names = {f"n{at}": size for at, size in enumerate(sizes)}
    made = cluster(names, *leases)
    gang = shape(*wanted)
    assume(not made.fits(gang, "gpu"))

    before = [made.place(shape(each), "gpu") for each in (1, 2, 3, 4)]
    kept = reserve(made, "r", gang, "gpu", leases).reservation
    assert [made.place(shape(each), "gpu") for each in (1, 2, 3, 4)] == before
    if kept is None:
        return
    granted: list[Lease] = []
    for number, (accelerators, run) in enumerate(filled):
        lasting = runs_into(kept, f"f{number}", 100 * run, NOW)
        placement: Placement | None = made.place(shape(accelerators), "gpu", lasting=lasting)
        if placement is not None:
            granted.append(lease(f"f{number}", accelerators, placement[0][0], left=100 * run, granted=NOW))
            made.take_lease(granted[-1])

    at_start = cluster(names, *(each for each in (*leases, *granted) if made.ends_at(each) > kept.starts))
    owner = Request("r", "r", "q", gang, 500, NOW, 100, claim=kept.placement)
    assert at_start.pool_of_claim(owner) == POOL
