"""Splits rows so that no text of a held-out row, question or answer, occurs in training. Standard library only."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence


def normalised(text: str) -> str:
    """Text as far as two people would call it the same: case, width, accents' encoding and white space do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Splitter:
    """Collects rows, then deals whole groups of them, linked by a shared text, to training or to evaluation.

    A text links wherever it occurs: "Hello" as a question and "hello" as an answer are the same text. Memory: about 200 bytes
    a row, whatever its length.
    """

    def __init__(self) -> None:
        self._texts: dict[bytes, int] = {}
        self._parents: list[int] = []
        self._contents: set[bytes] = set()
        self._rows: list[tuple[int, ...]] = []
        self._keys: list[bytes] = []

    @property
    def rows(self) -> int:
        """Rows collected."""
        return len(self._rows)

    def is_new(self, content: str) -> bool:
        """Whether a row of exactly this content has not been seen before; notes it."""
        key = _digest(content)
        if key in self._contents:
            return False
        self._contents.add(key)
        return True

    def add(self, texts: Sequence[str]) -> None:
        """Collects a row by its texts, of which there is one at least; `split` answers in the order of these calls."""
        nodes = tuple(self._node(text) for text in texts)
        for node in nodes[1:]:
            first, second = self._root(nodes[0]), self._root(node)
            if first != second:
                # The smaller key leads, so that the order of the rows has no say in a group's name.
                leader, other = sorted((first, second), key=self._keys.__getitem__)
                self._parents[other] = leader
        self._rows.append(nodes)

    def split(self, eval_fraction: float, seed: int) -> list[bool]:
        """Whether each row is held out.

        Groups are taken in an order drawn by `seed`; one that would exceed the share of held-out rows, at least two, is passed
        over, so a giant group always lands in training. The same rows in any order are split the same way.
        """
        roots = [self._root(nodes[0]) for nodes in self._rows]
        sizes = Counter(roots)
        goal = max(2, round(eval_fraction * len(roots)))
        held_out: set[int] = set()
        taken = 0
        for root in sorted(sizes, key=lambda root: _digest(f"{seed}:{self._keys[root].hex()}")):
            if taken + sizes[root] <= goal:
                held_out.add(root)
                taken += sizes[root]
        result = [root in held_out for root in roots]
        self._assert_disjoint(result)
        return result

    def largest_group(self) -> int:
        """Rows in the largest group."""
        return max(Counter(self._root(nodes[0]) for nodes in self._rows).values(), default=0)

    def _node(self, text: str) -> int:
        key = _digest(normalised(text))
        node = self._texts.get(key)
        if node is None:
            node = self._texts[key] = len(self._parents)
            self._parents.append(node)
            self._keys.append(key)
        return node

    def _root(self, node: int) -> int:
        while self._parents[node] != node:
            self._parents[node] = self._parents[self._parents[node]]
            node = self._parents[node]
        return node

    def _assert_disjoint(self, held_out: list[bool]) -> None:
        # By the texts themselves, not by the groups: the check does not rest on what it checks.
        evaluated = {node for nodes, held in zip(self._rows, held_out, strict=True) if held for node in nodes}
        trained = {node for nodes, held in zip(self._rows, held_out, strict=True) if not held for node in nodes}
        if shared := evaluated & trained:
            raise RuntimeError(f"{len(shared)} texts are both trained on and held out; expected none")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
