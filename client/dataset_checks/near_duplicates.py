"""Texts that are nearly the same, by MinHash over runs of words, in a fixed number of bytes a row.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3. All of it is array arithmetic: a row of 500 bytes costs a few microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BANDS = 8
_ROWS_OF_BAND = 4
HASHES = BANDS * _ROWS_OF_BAND
RUN_WORDS = 3
"""Words of the runs that are compared."""
MIN_RUNS = 10
"""Runs below which a text is too short to be called nearly the same as another."""
SIMILAR = 0.75
"""Share of equal hashes, an estimate of the runs that two texts share, from which they are called nearly the same."""
_SLICE_BYTES = 256 * 1024

U64 = NDArray[np.uint64]
_BASE = 0x9E3779B97F4A7C15  # Odd, so that it has an inverse modulo 2**64.
_random = np.random.default_rng(20261124)
_MULTIPLIERS = _random.integers(0, 2**32, HASHES, dtype=np.uint32) | np.uint32(1)
_OFFSETS = _random.integers(0, 2**32, HASHES, dtype=np.uint32)
_RUN_FACTORS = _random.integers(0, 2**64, RUN_WORDS, dtype=np.uint64) | np.uint64(1)
_BAND_FACTORS = _random.integers(0, 2**64, _ROWS_OF_BAND, dtype=np.uint64) | np.uint64(1)
_powers: dict[int, tuple[U64, U64]] = {}


def sketch(texts: Sequence[bytes]) -> tuple[U64, NDArray[np.uint8]]:
    """For each text the keys of its bands, (n, BANDS), all 0 for one that is too short, and its signature, (n, HASHES)."""
    bands = np.zeros((len(texts), BANDS), np.uint64)
    signatures = np.zeros((len(texts), HASHES), np.uint8)
    begin = 0
    while begin < len(texts):
        end, size = begin, 0
        while end < len(texts) and (size == 0 or size + len(texts[end]) < _SLICE_BYTES):
            size += len(texts[end])
            end += 1
        _sketch_slice(texts[begin:end], bands[begin:end], signatures[begin:end])
        begin = end
    return bands, signatures


def _sketch_slice(texts: Sequence[bytes], bands: U64, signatures: NDArray[np.uint8]) -> None:
    joined = np.frombuffer(b" " + b" ".join(texts).lower() + b" ", np.uint8)
    in_word = joined > 32
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    rows = np.repeat(np.arange(len(texts)), lengths)[starts - 1]
    power, inverse = _powers_for(len(joined))
    # The sum of byte * base^place over a word, shifted to place 0: equal words have equal hashes wherever they stand.
    sums = np.cumsum(joined * power[: len(joined)], dtype=np.uint64)
    words = (sums[ends - 1] - sums[starts - 1]) * inverse[starts]
    if len(words) < RUN_WORDS:
        return
    count = len(words) - RUN_WORDS + 1
    whole = rows[:count] == rows[RUN_WORDS - 1 :]
    runs = np.zeros(count, np.uint64)
    for place in range(RUN_WORDS):
        runs += _mixed(words[place : place + count]) * _RUN_FACTORS[place]
    hashes = (_mixed(runs[whole]) >> np.uint64(32)).astype(np.uint32)
    owners, first, sizes = np.unique(rows[:count][whole], return_index=True, return_counts=True)
    if not len(owners):
        return
    minima = np.empty((HASHES, len(owners)), np.uint32)
    for index in range(HASHES):
        minima[index] = np.minimum.reduceat(hashes * _MULTIPLIERS[index] + _OFFSETS[index], first)
    long_enough = sizes >= MIN_RUNS
    wide = minima.T.reshape(len(owners), BANDS, _ROWS_OF_BAND).astype(np.uint64)
    keys = _mixed((_mixed(wide) * _BAND_FACTORS).sum(axis=2, dtype=np.uint64)) | np.uint64(1)
    bands[owners[long_enough]] = keys[long_enough]
    signatures[owners] = (minima.T >> np.uint32(24)).astype(np.uint8) ^ (minima.T & np.uint32(255)).astype(np.uint8)


def nearest_earlier(bands: U64, signatures: NDArray[np.uint8]) -> dict[int, tuple[int, float]]:
    """For each row that is nearly the same as an earlier one: that one, and how similar they are (0 to 1)."""
    found: dict[int, tuple[int, float]] = {}
    for band in range(bands.shape[1]):
        order = np.argsort(bands[:, band], kind="stable")
        keys = bands[order, band]
        same = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] != 0)) + 1
        if not len(same):
            continue
        group = np.concatenate(([True], keys[1:] != keys[:-1]))
        heads = np.maximum.accumulate(np.where(group, np.arange(len(keys)), 0))
        for others in (order[heads[same]], order[same - 1]):
            later = order[same]
            similar = (signatures[later] == signatures[others]).mean(axis=1)
            for index in np.flatnonzero(similar >= SIMILAR):
                row, earlier = int(later[index]), int(others[index])
                if row not in found or earlier < found[row][0]:
                    found[row] = (earlier, float(similar[index]))
    return found


def nearest_of(
    references: U64, reference_signatures: NDArray[np.uint8], bands: U64, signatures: NDArray[np.uint8]
) -> dict[int, tuple[int, float]]:
    """For each row that is nearly the same as one of the references: that one, and how similar they are (0 to 1)."""
    found: dict[int, tuple[int, float]] = {}
    for band in range(BANDS):
        order = np.argsort(references[:, band], kind="stable")
        keys = references[order, band]
        places = np.minimum(np.searchsorted(keys, bands[:, band]), len(keys) - 1)
        rows = np.flatnonzero((keys[places] == bands[:, band]) & (bands[:, band] != 0))
        others = order[places[rows]]
        similar = (signatures[rows] == reference_signatures[others]).mean(axis=1)
        for index in np.flatnonzero(similar >= SIMILAR):
            found.setdefault(int(rows[index]), (int(others[index]), float(similar[index])))
    return found


def _mixed(values: Any) -> U64:
    """The finaliser of MurmurHash3: every bit of the input reaches every bit of the result."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _powers_for(size: int) -> tuple[U64, U64]:
    """Powers of the base and of its inverse, at least `size` of them."""
    known = _powers.get(0)
    if known is None or len(known[0]) < size:
        length = 1 << (size - 1).bit_length()
        known = _progression(_BASE, length), _progression(pow(_BASE, -1, 2**64), length)
        _powers[0] = known
    return known


def _progression(factor: int, length: int) -> U64:
    return np.cumprod(np.concatenate(([np.uint64(1)], np.full(length - 1, factor, np.uint64))), dtype=np.uint64)
