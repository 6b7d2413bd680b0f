"""Rules 2 and 3: who may use how much, and what it costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rounds import GPUS, queue

from scheduler.core import Amounts, QueueNode, Quota, Resource
from scheduler.core.quota import CellUse, QuotaTree

ACCELERATORS, CPU = Resource.ACCELERATORS, Resource.CPU_MILLIS
CPUS = ("gpu", CPU)


def tree_of(*below: QueueNode, capacity: int = 100, root: QueueNode | None = None, buckets: int = 1_000) -> QuotaTree:
    nodes = (root or QueueNode("org", None), *below) if below else ()
    return QuotaTree(nodes, ["stray"], {"gpu": (capacity, 0, 0)}, buckets=buckets)


def use(tree: QuotaTree, **accelerators: int) -> QuotaTree:
    for name, count in accelerators.items():
        tree.add(tree.leaf(name), "gpu", (count, 0, 0))
    return tree


def fits(tree: QuotaTree, name: str, accelerators: int) -> bool:
    return tree.short(tree.leaf(name), "gpu", (accelerators, 0, 0)) is None


def of(tree: QuotaTree, name: str) -> CellUse:
    number = next(at for at, node in enumerate(tree.nodes) if node.name == name)
    return tree.of(number, "gpu", ACCELERATORS)


def test_idle_nominal_is_lent_and_capacity_bounds_the_rest() -> None:
    tree = use(tree_of(queue("a", 10), queue("b", 30)), a=35)
    assert of(tree, "a") == CellUse(quota=10, used=35, maximum=10)
    assert of(tree, "org") == CellUse(quota=100, used=35, maximum=100)
    # Nobody keeps anything for themselves, so quota limits nobody: there is as much as there is.
    assert tree.available(tree.leaf("a"), "gpu", ACCELERATORS) is None
    assert fits(tree, "a", 1_000)


def test_a_borrowing_limit_bounds_a_team_and_with_it_its_queues() -> None:
    team = QueueNode("team", "org", quotas={GPUS: Quota(borrowing_limit=5)})
    tree = use(tree_of(team, queue("a", 10, "team"), queue("b", 10, "team")), a=15, b=6)
    assert of(tree, "team") == CellUse(quota=20, used=21, maximum=25)
    assert (fits(tree, "a", 4), fits(tree, "a", 5)) == (True, False)
    assert tree.nodes[tree.limiting(tree.leaf("a"), "gpu", ACCELERATORS)].name == "team"


def test_a_lending_limit_keeps_the_guaranteed_part_from_others_and_from_what_the_parent_sees() -> None:
    tree = tree_of(queue("a", Quota(nominal=60, lending_limit=20)), queue("b", 40))
    assert tree.available(tree.leaf("b"), "gpu", ACCELERATORS) == 60
    assert tree.available(tree.leaf("a"), "gpu", ACCELERATORS) == 100
    use(tree, a=45, b=30)
    assert of(tree, "org") == CellUse(quota=60, used=35, maximum=60)
    assert (fits(tree, "b", 25), fits(tree, "b", 26)) == (True, False)
    assert tree.nodes[tree.limiting(tree.leaf("b"), "gpu", ACCELERATORS)].name == "org"


def test_the_root_has_what_was_given_to_nobody() -> None:
    tree = tree_of(queue("a", Quota(nominal=30, lending_limit=0)), queue("b", 20), capacity=100)
    # 100 less the 30 that a never lends.
    assert of(tree, "org").quota == 70
    assert of(tree_of(queue("a", 80), queue("b", 70), capacity=100), "org").quota == 150


def test_more_is_used_than_may_be_when_capacity_is_lost() -> None:
    tree = use(tree_of(queue("a", Quota(nominal=10, lending_limit=0)), queue("b", 0), capacity=40), b=50)
    assert tree.available(tree.leaf("b"), "gpu", ACCELERATORS) == -20
    assert tree.available(tree.leaf("a"), "gpu", ACCELERATORS) == -10


def test_what_nobody_names_is_not_limited_and_is_no_borrowing() -> None:
    tree = QuotaTree((QueueNode("org", None), queue("a", 4)), [], {"gpu": (8, 10, 0)}, buckets=1_000)
    amounts: Amounts = (4, 1_000_000, 0)
    assert tree.short(tree.leaf("a"), "gpu", amounts) is None
    assert tree.weigh(tree.leaf("a"), tree.leaf("a"), "gpu", amounts) == (False, 0)


def test_without_any_quota_all_resources_are_shared_by_cost() -> None:
    tree = QuotaTree((), ["a", "b"], {"gpu": (8, 100, 0)}, buckets=1_000)
    # Half of the accelerators, four fifths of the CPU: the largest counts.
    assert tree.weigh(tree.leaf("a"), tree.leaf("a"), "gpu", (4, 80, 0)) == (True, 800)
    assert tree.short(tree.leaf("a"), "gpu", (99, 0, 0)) is None


def test_cost_is_what_is_borrowed_of_what_can_be_lent_over_weight_in_whole_buckets() -> None:
    tree = use(tree_of(queue("a", 10, weight=1_000), queue("b", 10, weight=3_000), capacity=200), a=37, b=37)
    # 27 of 200 in steps of a thousandth: 135; a third of that for three times the weight.
    assert (tree.cost(tree.leaf("a")), tree.cost(tree.leaf("b"))) == (135, 45)
    assert tree.cost(tree.leaf("stray")) == 0


def test_use_within_nominal_is_free() -> None:
    tree = use(tree_of(queue("a", 10)), a=9)
    leaf = tree.leaf("a")
    assert tree.weigh(leaf, leaf, "gpu", (1, 0, 0)) == (False, 0)
    assert tree.weigh(leaf, leaf, "gpu", (2, 0, 0)) == (True, 10)


def test_borrowing_looks_only_at_what_is_asked_for() -> None:
    quotas = {GPUS: Quota(10), CPUS: Quota(1)}
    tree = QuotaTree((QueueNode("org", None), QueueNode("a", "org", quotas=quotas)), [], {"gpu": (10, 10, 0)}, buckets=1_000)
    leaf = tree.leaf("a")
    tree.add(leaf, "gpu", (0, 5, 0))
    assert tree.weigh(leaf, leaf, "gpu", (1, 0, 0)) == (False, 400)
    assert tree.borrows(leaf, "gpu", (0, 1, 0))
    assert not tree.borrows(leaf, "gpu", (1, 0, 0))


def test_a_queue_that_is_not_in_the_tree_is_below_the_root() -> None:
    tree = use(tree_of(queue("a", 50)), stray=10)
    assert [tree.nodes[node].name for node in tree.path(tree.leaf("stray"))] == ["stray", "org"]
    assert tree.cost(tree.leaf("stray")) == 100


def test_a_queue_named_like_a_team_is_below_that_team() -> None:
    tree = QuotaTree((QueueNode("org", None), queue("team"), queue("a", 4, "team")), ["team"], {"gpu": (8, 0, 0)}, buckets=10)
    assert [tree.nodes[node].name for node in tree.path(tree.leaf("team"))] == ["team", "team", "org"]


def test_sides_are_the_children_of_the_lowest_common_ancestor() -> None:
    tree = tree_of(queue("t"), queue("u"), queue("ta", 0, "t"), queue("tb", 0, "t"), queue("ua", 0, "u"))

    def sides(one: str, other: str) -> list[str]:
        return [tree.nodes[node].name for node in tree.sides(tree.leaf(one), tree.leaf(other))]

    assert sides("ta", "tb") == ["ta", "tb"]
    assert sides("ta", "ua") == ["t", "u"]
    assert sides("stray", "ua") == ["stray", "u"]


def test_a_queue_below_anybody_demoted_is_demoted() -> None:
    tree = tree_of(queue("t", demoted=True), queue("ta", 0, "t"), queue("u"))
    assert [tree.demoted(tree.leaf(name)) for name in ("ta", "u", "stray")] == [True, False, False]


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ((QueueNode("a", None), QueueNode("b", None)), r"has the roots \['a', 'b'\]; expected exactly one"),
        ((QueueNode("a", "b"),), r"has the roots \[\]; expected exactly one"),
        ((QueueNode("a", None), QueueNode("b", "a"), QueueNode("b", "a")), "has the node 'b' twice"),
        ((QueueNode("a", None), QueueNode("b", "x")), "'b' of the quota tree is not below its root; .* not 'x'"),
        ((QueueNode("a", None), QueueNode("b", "c"), QueueNode("c", "b")), "'b' of the quota tree is not below its root"),
    ],
    ids=["two roots", "no root", "twice", "unknown parent", "circle"],
)
def test_what_is_no_tree_is_refused(nodes: tuple[QueueNode, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        QuotaTree(nodes, [], {}, buckets=1)


_LIMIT = some.none() | some.integers(0, 6)


@given(
    nominals=some.lists(some.builds(Quota, some.integers(0, 9), _LIMIT, _LIMIT), min_size=4, max_size=4),
    used=some.lists(some.tuples(some.sampled_from(("a", "b", "c")), some.integers(0, 9)), max_size=6),
    asked=some.integers(1, 9),
)
def test_weighing_and_removing_agree_with_adding(nominals: list[Quota], used: list[tuple[str, int]], asked: int) -> None:
    team, a, b, c = nominals
    tree = tree_of(queue("t", team), queue("a", a, "t"), queue("b", b, "t"), queue("c", c), capacity=20)
    for name, count in used:
        tree.add(tree.leaf(name), "gpu", (count, 0, 0))
    untouched = tree.copy()
    leaf, amounts = tree.leaf("a"), (asked, 0, 0)
    foretold = [tree.weigh(node, leaf, "gpu", amounts) for node in tree.path(leaf)]
    tree.add(leaf, "gpu", amounts)
    assert [(tree.borrows(node, "gpu", amounts), tree.cost(node)) for node in tree.path(leaf)] == foretold
    tree.remove(leaf, "gpu", amounts)
    for node in range(len(tree.nodes)):
        assert tree.of(node, "gpu", ACCELERATORS) == untouched.of(node, "gpu", ACCELERATORS)
        assert tree.cost(node) == untouched.cost(node)
