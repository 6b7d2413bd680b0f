"""The split shares no text between training and evaluation, whatever the rows, and depends on nothing but rows and seed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dataset_checks.fingerprints import content
from workers.runner.data.examples import linking_texts
from workers.runner.data.split import Splitter, normalised

TEXTS = st.sampled_from([f"text {n}" for n in range(40)] + [f" TEXT  {n}" for n in range(40)])
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=60)


def _split(pairs: list[tuple[str, str]], fraction: float = 0.2, seed: int = 0) -> list[bool]:
    splitter = Splitter()
    for pair in pairs:
        splitter.add(pair)
    return splitter.split(fraction, seed)


@given(PAIRS, st.floats(0.01, 0.5), st.integers(0, 1000))
def test_no_text_is_on_both_sides(pairs: list[tuple[str, str]], fraction: float, seed: int) -> None:
    held_out = _split(pairs, fraction, seed)
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for pair, held in zip(pairs, held_out, strict=True):
        sides[held].update(map(normalised, pair))
    assert not sides[True] & sides[False]
    assert sum(held_out) <= max(2, round(fraction * len(pairs)))


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(pairs: list[tuple[str, str]], shuffler: random.Random) -> None:
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    by_pair = dict(zip(shuffled, _split(shuffled), strict=True))
    assert _split(pairs) == [by_pair[pair] for pair in pairs]


def test_a_giant_group_goes_to_training() -> None:
    pairs = [("hub", f"answer {n}") for n in range(90)] + [(f"question {n}", f"reply {n}") for n in range(10)]
    held_out = _split(pairs, 0.1)
    assert not any(held_out[:90])
    assert all(held_out[90:])


def test_groups_linked_by_a_chain_stay_together() -> None:
    pairs = [(f"{n}", f"{n + 1}") for n in range(20)]
    assert _split(pairs, 0.5) == [False] * 20


def test_the_seed_decides() -> None:
    pairs = [(f"question {n}", f"answer {n}") for n in range(100)]
    splits = [_split(pairs, 0.2, seed) for seed in range(5)]
    assert all(sum(split) == 20 for split in splits)
    assert len(set(map(tuple, splits))) == 5
    assert _split(pairs, 0.2, 3) == splits[3]


def test_a_row_is_new_once() -> None:
    splitter = Splitter()
    assert splitter.is_new(content({"prompt": "ab", "completion": "c"}))
    assert splitter.is_new(content({"prompt": "a", "completion": "bc"}))
    assert not splitter.is_new(content({"completion": "c", "prompt": "ab"}))


def test_conversations_are_linked_by_their_opening_and_their_answers() -> None:
    turns = [("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Thanks"), ("assistant", "B")]
    assert linking_texts({"messages": [{"role": role, "content": text} for role, text in turns]}) == ["Q", "A", "B"]
    assert linking_texts({"prompt": "P", "chosen": "C", "rejected": "R", "label": True}) == ["P", "C", "R"]


def test_case_width_and_white_space_do_not_make_another_text() -> None:
    assert normalised("  What IS\n\t\uff21\uff29? ") == normalised("what is AI?")
    assert normalised("Straße") == normalised("STRASSE")
    assert normalised("caf\u00e9") == normalised("cafe\u0301")
    assert normalised("what is AI") != normalised("what is BI")
