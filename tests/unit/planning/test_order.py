"""Rule 4: whose turn it is. The heaps give what looking at everybody anew gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some
from rounds import queue

from scheduler.core import QueueNode
from scheduler.core.order import FairOrder, Head
from scheduler.core.quota import ROOT, NodeIndex, QuotaTree
from scheduler.core.types import Micros

QUEUES = ("a", "b", "c", "d")
TREE = (QueueNode("org", None), queue("t", 3), queue("a", 1, "t"), queue("b", 0, "t"), queue("c", 2), queue("d"))


def tree_of(*past_use: int) -> QuotaTree:
    nodes = [
        *TREE[:2],
        *(queue(node.name, 1, str(node.parent), past_use=use) for node, use in zip(TREE[2:], past_use, strict=True)),
    ]
    return QuotaTree(nodes, [], {"gpu": (16, 0, 0)}, buckets=10)


def head(number: int, accelerators: int, virtual: int = 0) -> Head:
    return Head((virtual, Micros(0), str(number)), "gpu", (accelerators, 0, 0))


def best(tree: QuotaTree, heads: dict[NodeIndex, Head], node: NodeIndex = ROOT) -> NodeIndex | None:
    """From the root down, by the words of the rule."""
    if node in heads:
        return node
    ahead = {child: leaf for child in tree.children(node) if (leaf := best(tree, heads, child)) is not None}

    def key(child: NodeIndex) -> tuple[object, ...]:
        leaf = ahead[child]
        of = heads[leaf]
        return (*tree.weigh(child, leaf, of.pool, of.amounts), tree.nodes[child].past_use, of.line_key)

    return ahead[min(ahead, key=key)] if ahead else None


def test_all_out_and_nobody_is_first() -> None:
    tree = tree_of(0, 0, 0, 0)
    order = FairOrder(tree, {tree.leaf("a"): head(1, 1)})
    assert order.first() == tree.leaf("a")
    order.update(tree.leaf("a"), None)
    assert order.first() is None
    assert FairOrder(tree, {}).first() is None


_ASKED = some.integers(1, 5)


@given(
    past_use=some.lists(some.integers(0, 2), min_size=4, max_size=4),
    first=some.lists(some.none() | _ASKED, min_size=4, max_size=4),
    turns=some.lists(some.tuples(some.booleans(), some.none() | _ASKED, some.integers(0, 3)), max_size=20),
)
def test_the_heaps_agree_with_the_rule_after_every_turn(
    past_use: list[int], first: list[int | None], turns: list[tuple[bool, int | None, int]]
) -> None:
    tree = tree_of(*past_use)
    heads = {tree.leaf(name): head(at, asked) for at, (name, asked) in enumerate(zip(QUEUES, first, strict=True)) if asked}
    order = FairOrder(tree, heads)
    for number, (granted, asked, virtual) in enumerate(turns, len(QUEUES)):
        leaf = order.first()
        assert leaf == best(tree, heads)
        if leaf is None:
            return
        if granted:
            tree.add(leaf, "gpu", heads[leaf].amounts)
        del heads[leaf]
        if asked:
            heads[leaf] = head(number, asked, virtual)
        order.update(leaf, heads.get(leaf))
    assert order.first() == best(tree, heads)
