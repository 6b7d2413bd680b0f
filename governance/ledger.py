"""The double-entry ledger, as a value in memory: the rules that the one in the database keeps, and what simulations run on.

Every scope has a ledger for each period, with four accounts in each of the two books:

* external: where money comes from; it is below zero by what the budget was given.
* budget: what may still be reserved. Under a limit it is never below zero; without one it is below by what was used.
* reserved: what running leases may cost.
* spent: what ended leases did cost.

A transaction moves amounts between accounts of a ledger, the same in the ledger of every scope that a lease is charged to, and
sums to zero in each ledger and book. *Reserve* takes all that a lease may cost from the budget; *settle* takes it back, charges
what was used and returns the rest; *release* returns all of it, if nothing was used; *fund* gives to the budget, or takes.

The form is that of pending transfers, posted or voided once, and of accounts that may not be overdrawn (TigerBeetle's data
model, docs.tigerbeetle.com/coding/two-phase-transfers). Two things differ: a lease that was held longer than it had reserved is
charged in full where there is room for it, and else up to what it had reserved; and a limit that is lowered below what is
committed sinks as leases end (`governance.budgets.funded`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from governance import costs
from governance.budgets import funded
from governance.values import UNLIMITED, Amounts, Book, Limits


class Account(StrEnum):
    """Between which amounts move within a ledger."""

    EXTERNAL = "EXTERNAL"
    BUDGET = "BUDGET"
    RESERVED = "RESERVED"
    SPENT = "SPENT"


class EntryKind(StrEnum):
    """What a transaction is."""

    FUND = "FUND"
    RESERVE = "RESERVE"
    SETTLE = "SETTLE"
    RELEASE = "RELEASE"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what a transaction does to one account."""

    kind: EntryKind
    reference: str
    """The lease; of FUND, the change that caused it. Kind and reference name the transaction."""
    ledger: int
    account: Account
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a lease asks to reserve, and in which ledgers."""

    lease_id: str
    ledgers: tuple[int, ...]
    held_ms: int
    """Accelerators times the longest time it can be held."""
    kind: str
    micros_per_hour: int
    """At its grant."""

    @property
    def reserved(self) -> Amounts:
        """All that it may cost."""
        return costs.reservation(self.held_ms, self.kind, self.micros_per_hour)

    def charge(self, used_ms: int) -> Amounts:
        """What it costs to have held it for so many accelerator-milliseconds."""
        return costs.charge(used_ms, self.kind, self.micros_per_hour)


@dataclass(slots=True)
class Ledger:
    """The balances of one scope in one period."""

    balances: dict[Account, Amounts] = field(default_factory=lambda: dict.fromkeys(Account, Amounts()))
    limits: Limits = UNLIMITED
    """What may be committed at most."""

    @property
    def committed(self) -> Amounts:
        """Spent and reserved."""
        return self.balances[Account.SPENT] + self.balances[Account.RESERVED]

    def has_room(self, amounts: Amounts) -> bool:
        """Whether the budget has these amounts, where it is limited."""
        left = self.balances[Account.BUDGET]
        return all(self.limits.of(book) is None or amounts.of(book) <= left.of(book) for book in Book)


class Ledgers:
    """Ledgers in memory, and every entry ever made in them."""

    def __init__(self) -> None:
        self.ledgers: dict[int, Ledger] = {}
        self.entries: list[Entry] = []
        self._open: dict[str, LeaseTerms] = {}

    def set_limit(self, ledger: int, hard: Limits, *, enforced: bool, reference: str) -> None:
        """Gives a ledger, which need not be there yet, the budget of its period.

        Args:
            ledger: which one.
            hard: the hard limits.
            enforced: whether they may never be overrun.
            reference: names the change.
        """
        found = self.ledgers.setdefault(ledger, Ledger())
        given = -found.balances[Account.EXTERNAL]
        wanted = Amounts.by_book(lambda book: funded(hard.of(book), found.committed.of(book), enforced=enforced))
        self._enter(EntryKind.FUND, reference, ledger, {Account.EXTERNAL: given - wanted, Account.BUDGET: wanted - given})
        found.limits = hard if enforced else UNLIMITED

    def reserve(self, leases: Sequence[LeaseTerms]) -> list[str]:
        """Reserves for each lease, in order, if all of its ledgers have room; returns the ids of those refused."""
        refused: list[str] = []
        for lease in leases:
            amounts = lease.reserved
            if not all(self.ledgers[ledger].has_room(amounts) for ledger in lease.ledgers):
                refused.append(lease.lease_id)
                continue
            self._open[lease.lease_id] = lease
            for ledger in lease.ledgers:
                moves = {Account.BUDGET: -amounts, Account.RESERVED: amounts}
                self._enter(EntryKind.RESERVE, lease.lease_id, ledger, moves)
        return refused

    def settle(self, ends: Sequence[tuple[str, int]], reference: str) -> dict[str, Amounts]:
        """Closes the reservations of leases that ended; those that have none, or had it closed, are left out.

        Args:
            ends: each lease with the accelerator-milliseconds that it was held.
            reference: names the change, should a limit sink.

        Returns:
            What each was charged.
        """
        closing = [(self._open.pop(lease_id), used) for lease_id, used in ends if lease_id in self._open]
        charged = self._charges(closing)
        for lease, used in closing:
            amounts, reserved = charged[lease.lease_id], lease.reserved
            kind = EntryKind.SETTLE if used else EntryKind.RELEASE
            moves = {Account.RESERVED: -reserved, Account.SPENT: amounts, Account.BUDGET: reserved - amounts}
            for ledger in lease.ledgers:
                self._enter(kind, lease.lease_id, ledger, moves)
        for ledger in sorted({ledger for lease, _ in closing for ledger in lease.ledgers}):
            self._sink(ledger, f"{reference}/{ledger}")
        return charged

    def _charges(self, closing: Sequence[tuple[LeaseTerms, int]]) -> dict[str, Amounts]:
        """What each lease is charged. What was beyond a reservation takes, in order, of the room there was before."""
        beyond = dict.fromkeys(self.ledgers, Amounts())
        charged: dict[str, Amounts] = {}
        for lease, used in closing:
            full, capped = lease.charge(used), lease.charge(min(used, lease.held_ms))
            if used > lease.held_ms:
                for ledger in lease.ledgers:
                    beyond[ledger] += full - lease.reserved
                if not all(self.ledgers[ledger].has_room(beyond[ledger]) for ledger in lease.ledgers):
                    full = capped
            charged[lease.lease_id] = full
        return charged

    def _sink(self, ledger: int, reference: str) -> None:
        """Takes back what a lowered limit does not cover any more, as far as the budget has it."""
        found = self.ledgers[ledger]
        given, left = -found.balances[Account.EXTERNAL], found.balances[Account.BUDGET]

        def beyond(book: Book) -> int:
            limit = found.limits.of(book)
            return 0 if limit is None else max(0, min(given.of(book) - limit, left.of(book)))

        back = Amounts.by_book(beyond)
        self._enter(EntryKind.FUND, reference, ledger, {Account.BUDGET: -back, Account.EXTERNAL: back})

    def _enter(self, kind: EntryKind, reference: str, ledger: int, moves: Mapping[Account, Amounts]) -> None:
        balances = self.ledgers[ledger].balances
        for account, amounts in moves.items():
            if amounts:
                balances[account] += amounts
                self.entries.append(Entry(kind, reference, ledger, account, amounts))


def balances_of(entries: Iterable[Entry]) -> dict[tuple[int, Account], Amounts]:
    """The balance of every account, recomputed from its entries."""
    found: dict[tuple[int, Account], Amounts] = {}
    for entry in entries:
        key = entry.ledger, entry.account
        found[key] = found.get(key, Amounts()) + entry.amounts
    return found
