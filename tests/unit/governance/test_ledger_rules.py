"""The ledger as a value: whatever happens to it, it sums to zero, overruns nothing, and closes what it reserves once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from governance.chargeback import money
from governance.ledger import Account, Entry, EntryKind, LeaseTerms, Ledgers, balances_of
from governance.ledger_check import LedgerCheck, Limited
from governance.values import UNLIMITED, Amounts, Book, Limits

DOCS = Path(__file__).parents[3] / "docs/explanation/budgets.md"
HOUR = 3_600_000
LEDGERS = (1, 2, 3)
AMOUNTS = st.integers(1, 2_000)


class LedgerHistory(RuleBasedStateMachine):
    """Budgets are set and changed, leases are reserved for and end, in any order."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.ledgers = Ledgers()
        self.numbers = count()
        self.limited: dict[int, Limited] = {}
        for ledger in LEDGERS:
            self.ledgers.set_limit(ledger, UNLIMITED, enforced=False, reference="opened")

    @rule(ledger=st.sampled_from(LEDGERS), micros=AMOUNTS, ms=st.none() | AMOUNTS, enforced=st.booleans())
    def set_limit(self, ledger: int, micros: int, ms: int | None, enforced: bool) -> None:
        before = self.ledgers.ledgers[ledger]
        self.ledgers.set_limit(ledger, Limits(micros, ms), enforced=enforced, reference=f"set/{next(self.numbers)}")
        given = -before.balances[Account.EXTERNAL]
        if enforced:
            books = frozenset({Book.MONEY} if ms is None else Book)
            earlier = self.limited.get(ledger)
            same = earlier is not None and books <= earlier.books
            self.limited[ledger] = Limited(earlier.after if same and earlier else len(self.ledgers.entries), books)
            # As much as the limit, or what is promised already.
            assert given.micros == max(micros, before.committed.micros)
        else:
            self.limited.pop(ledger, None)
            assert given == Amounts(micros, ms or 0)

    @rule(
        target=held,
        asked=st.lists(
            st.tuples(
                st.sets(st.sampled_from(LEDGERS), min_size=1),
                st.integers(1, 600),
                st.sampled_from(["h200", "cpu"]),
                st.sampled_from([0, 1, HOUR // 3, HOUR, 2 * HOUR]),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def reserve(self, asked: list[tuple[set[int], int, str, int]]) -> object:
        leases = [
            LeaseTerms(f"lease/{next(self.numbers)}", tuple(sorted(ledgers)), held, kind, price)
            for ledgers, held, kind, price in asked
        ]
        refused = self.ledgers.reserve(leases)
        for lease in leases:
            # What is refused would not fit now either: within a call a budget only empties.
            fits = all(self.ledgers.ledgers[ledger].has_room(lease.reserved) for ledger in lease.ledgers)
            assert lease.lease_id not in refused or not fits
        return multiple(*(lease for lease in leases if lease.lease_id not in refused))

    @rule(ends=st.lists(st.tuples(consumes(held), st.integers(0, 900)), max_size=4))
    def settle(self, ends: list[tuple[LeaseTerms, int]]) -> None:
        uses = [(lease.lease_id, used) for lease, used in ends]
        charged = self.ledgers.settle(uses, f"settle/{next(self.numbers)}")
        assert charged.keys() == {lease.lease_id for lease, _ in ends}
        for lease, used in ends:
            full, capped = lease.charge(used), lease.charge(min(used, lease.held_ms))
            assert charged[lease.lease_id] in (full, capped)
            if used <= lease.held_ms:
                assert charged[lease.lease_id] == full
        assert self.ledgers.settle(uses, "again") == {}

    @invariant()
    def holds_together_in_every_prefix(self) -> None:
        check = LedgerCheck(self.limited)
        for place, entry in enumerate(self.ledgers.entries, 1):
            check.take(place, entry)
        check.finish()
        assert check.problems == []

    @invariant()
    def keeps_the_balances_that_its_entries_make(self) -> None:
        computed = balances_of(self.ledgers.entries)
        for number, ledger in self.ledgers.ledgers.items():
            assert sum(ledger.balances.values(), start=Amounts()) == Amounts()
            for account, balance in ledger.balances.items():
                assert computed.get((number, account), Amounts()) == balance

    @invariant()
    def never_overruns_a_limit(self) -> None:
        for ledger in self.ledgers.ledgers.values():
            for book in Book:
                if ledger.limits.of(book) is not None:
                    given = -ledger.balances[Account.EXTERNAL].of(book)
                    assert ledger.committed.of(book) <= given

    @invariant()
    def sinks_to_a_lowered_limit_and_grants_nothing_meanwhile(self) -> None:
        for ledger in self.ledgers.ledgers.values():
            for book in Book:
                limit = ledger.limits.of(book)
                if limit is not None and -ledger.balances[Account.EXTERNAL].of(book) > limit:
                    assert ledger.balances[Account.BUDGET].of(book) == 0

    @invariant()
    def closes_each_reservation_at_most_once(self) -> None:
        closed = Counter(
            (entry.reference, entry.ledger)
            for entry in self.ledgers.entries
            if entry.account is Account.RESERVED and entry.kind is not EntryKind.RESERVE
        )
        assert all(times == 1 for times in closed.values())


TestLedgerHistory = LedgerHistory.TestCase
TestLedgerHistory.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def _entry(kind: EntryKind, account: Account, micros: int, reference: str = "a") -> Entry:
    return Entry(kind, reference, 1, account, Amounts(micros, 0))


RESERVE = [_entry(EntryKind.RESERVE, Account.BUDGET, -5), _entry(EntryKind.RESERVE, Account.RESERVED, 5)]
RELEASE = [_entry(EntryKind.RELEASE, Account.RESERVED, -5), _entry(EntryKind.RELEASE, Account.BUDGET, 5)]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (RESERVE[:1], "a transaction sums to zero"),
        ([*RESERVE, *RESERVE], "once more"),
        (RELEASE, "holds no reservation"),
        ([*RESERVE, *RELEASE, *RELEASE], "holds no reservation"),
        (
            [*RESERVE, _entry(EntryKind.SETTLE, Account.RESERVED, -3), _entry(EntryKind.SETTLE, Account.SPENT, 3)],
            "which had reserved",
        ),
        ([*RESERVE, _entry(EntryKind.FUND, Account.SPENT, -1), _entry(EntryKind.FUND, Account.EXTERNAL, 1)], "account SPENT"),
    ],
)
def test_the_check_finds_what_does_not_hold(entries: list[Entry], says: str) -> None:
    check = LedgerCheck({})
    for place, entry in enumerate(entries, 1):
        check.take(place, entry)
    check.finish()
    assert any(says in problem for problem in check.problems), check.problems


def test_the_check_sees_an_overrun_that_was_made_good_later() -> None:
    history = [*RESERVE, *RELEASE]
    for after, found in ((0, True), (1, False)):
        check = LedgerCheck({1: Limited(after, frozenset({Book.MONEY}))})
        for place, entry in enumerate(history, 1):
            check.take(place, entry)
        assert check.finish() == set()
        assert any("account BUDGET" in problem for problem in check.problems) == found


def test_the_example_in_the_docs_is_what_happens() -> None:
    ledgers = Ledgers()
    first = LeaseTerms("first", (1,), 4 * 2 * HOUR, "h200", 3_600_000)
    second = LeaseTerms("second", (1,), 5 * 4 * HOUR, "h200", 3_600_000)
    steps: list[Callable[[], object]] = [
        lambda: ledgers.set_limit(1, Limits(100_000_000, None), enforced=True, reference="set"),
        lambda: ledgers.reserve([first]),
        lambda: ledgers.reserve([second]),
        lambda: ledgers.settle([("first", 4 * (HOUR + 12 * 60_000 + 30_500))], "settle"),
        lambda: ledgers.reserve([second]),
        lambda: ledgers.set_limit(1, Limits(50_000_000, None), enforced=True, reference="lower"),
        lambda: ledgers.settle([("second", 5 * HOUR)], "settle"),
    ]
    rows = re.findall(r"^\| \d \|(.*)\|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(steps)
    for step, row in zip(steps, rows, strict=True):
        step()
        balances = ledgers.ledgers[1].balances
        assert [cell.strip() for cell in row.split("|")] == [money(balances[account].micros) for account in Account]
