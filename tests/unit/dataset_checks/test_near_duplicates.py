"""Texts that are nearly the same are found, texts that are not are left alone, whatever else is in the file."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from dataset_checks.near_duplicates import MIN_RUNS, RUN_WORDS, nearest_earlier, nearest_of, sketch

WORDS = [f"word{number}" for number in range(5_000)]


def _text(rng: random.Random, words: int) -> list[str]:
    return rng.choices(WORDS, k=words)


def _changed(words: list[str], changes: int, rng: random.Random) -> list[str]:
    copy = list(words)
    for place in rng.sample(range(len(copy)), changes):
        copy[place] = "other"
    return copy


def _bytes(texts: list[list[str]]) -> list[bytes]:
    return [" ".join(words).encode() for words in texts]


def test_copies_with_small_changes_are_found_and_no_others() -> None:
    rng = random.Random(1)
    originals = [_text(rng, rng.randint(80, 400)) for _ in range(300)]
    copies = [_changed(words, 1, rng) for words in originals]
    found = nearest_earlier(*sketch(_bytes([*originals, *copies])))
    assert set(found) == set(range(300, 600))
    assert all(earlier == row - 300 and share > 0.75 for row, (earlier, share) in found.items())


def test_texts_that_share_half_their_words_are_not_nearly_the_same() -> None:
    rng = random.Random(2)
    originals = [_text(rng, 100) for _ in range(300)]
    halves = [words[:50] + _text(rng, 50) for words in originals]
    assert nearest_earlier(*sketch(_bytes([*originals, *halves]))) == {}


def test_case_and_white_space_do_not_count_and_the_order_of_slices_neither() -> None:
    rng = random.Random(3)
    words = _text(rng, 100)
    others = [_text(rng, 20_000) for _ in range(5)]
    texts = [" ".join(words).encode(), *_bytes(others), "\n\t".join(words).upper().encode()]
    assert nearest_earlier(*sketch(texts)) == {6: (0, 1.0)}


@pytest.mark.parametrize("words", [0, 1, RUN_WORDS, MIN_RUNS + RUN_WORDS - 2])
def test_short_texts_are_never_called_nearly_the_same(words: int) -> None:
    text = " ".join(WORDS[:words]).encode()
    assert nearest_earlier(*sketch([text, text, b""])) == {}
    longer = " ".join(WORDS[: MIN_RUNS + RUN_WORDS - 1]).encode()
    assert nearest_earlier(*sketch([longer, longer])) == {1: (0, 1.0)}


def test_another_file_is_searched() -> None:
    rng = random.Random(4)
    held_out = [_text(rng, 150) for _ in range(50)]
    rows = [*(_text(rng, 150) for _ in range(100)), _changed(held_out[7], 1, rng)]
    found = nearest_of(*sketch(_bytes(held_out)), *sketch(_bytes(rows)))
    assert {row: other for row, (other, _) in found.items()} == {100: 7}


def test_the_estimate_follows_the_share_of_runs_that_are_shared() -> None:
    rng = random.Random(5)
    words = _text(rng, 600)
    shares: list[float] = []
    for changes in (0, 20, 60, 200):
        other = _changed(words, changes, rng)
        _, signatures = sketch(_bytes([words, other]))
        runs = [{tuple(text[at : at + RUN_WORDS]) for at in range(len(text) - RUN_WORDS + 1)} for text in (words, other)]
        share = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
        estimate = float(np.mean(signatures[0] == signatures[1]))
        # Four standard deviations of 32 draws.
        assert abs(estimate - share) <= 4 * (max(share * (1 - share), 0.004) / 32) ** 0.5 + 1 / 32
        shares.append(share)
    assert all(before > after for before, after in pairwise(shares))
