"""Whether a ledger's entries hold together: they are read in order, and every prefix of them is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from governance.ledger import Account, Entry, EntryKind
from governance.values import Amounts, Book

PROBLEMS_MAX = 100


@dataclass(frozen=True, slots=True)
class Limited:
    """That a ledger has not been overrun since a certain entry."""

    after: int
    """The last entry that may still have overrun."""
    books: frozenset[Book]


class LedgerCheck:
    """Takes entries in order of their ids, and says what is wrong with them.

    In every prefix: no reserved or spent amount below zero; no limited budget below zero, which is to say that what is spent
    and reserved is within what was given; nothing closed that was not reserved, and nothing reserved or closed twice. In all
    of them: every transaction sums to zero in every ledger and book.

    Memory: one number for each transaction under way and each reservation that was ever made.
    """

    def __init__(self, limited: Mapping[int, Limited]) -> None:
        """Args:
        limited: by ledger; one that is not named may be overrun.
        """
        self._limited = limited
        self._reserved: dict[tuple[str, int], Amounts | None] = {}
        self._unbalanced: dict[tuple[EntryKind, str, int], Amounts] = {}
        self.balances: dict[tuple[int, Account], Amounts] = {}
        """Of each account, recomputed."""
        self.problems: list[str] = []
        """What is wrong, the first `PROBLEMS_MAX`."""

    def take(self, entry_id: int, entry: Entry) -> None:
        """Looks at the next entry."""
        account = entry.ledger, entry.account
        balance = self.balances[account] = self.balances.get(account, Amounts()) + entry.amounts
        self._sum(entry)
        if entry.account is Account.RESERVED:
            self._follow(entry_id, entry)
        if entry.account in (Account.RESERVED, Account.SPENT):
            self._refuse_negative(entry_id, entry, balance, frozenset(Book))
        elif entry.account is Account.BUDGET and (limited := self._limited.get(entry.ledger)) and entry_id > limited.after:
            self._refuse_negative(entry_id, entry, balance, limited.books)

    def finish(self) -> set[str]:
        """Says what is wrong with all of them together; returns the references of the reservations that are open."""
        for (kind, reference, ledger), rest in self._unbalanced.items():
            self._report(f"{kind} {reference} leaves {rest} in ledger {ledger}; a transaction sums to zero")
        return {reference for (reference, _), amounts in self._reserved.items() if amounts is not None}

    def _sum(self, entry: Entry) -> None:
        key = entry.kind, entry.reference, entry.ledger
        rest = self._unbalanced.pop(key, Amounts()) + entry.amounts
        if rest:
            self._unbalanced[key] = rest

    def _follow(self, entry_id: int, entry: Entry) -> None:
        """Keeps account of what is reserved and closed."""
        key = entry.reference, entry.ledger
        if entry.kind is EntryKind.RESERVE:
            if key in self._reserved:
                self._report(f"entry {entry_id} reserves for lease {entry.reference} once more in ledger {entry.ledger}")
            self._reserved[key] = entry.amounts
            return
        reserved = self._reserved.get(key)
        if reserved is None:
            self._report(
                f"entry {entry_id} closes lease {entry.reference}, for which ledger {entry.ledger} holds no reservation"
            )
        elif entry.amounts != -reserved:
            self._report(f"entry {entry_id} returns {-entry.amounts} of lease {entry.reference}, which had reserved {reserved}")
        self._reserved[key] = None

    def _refuse_negative(self, entry_id: int, entry: Entry, balance: Amounts, books: frozenset[Book]) -> None:
        for book in Book:
            if book in books and balance.of(book) < 0:
                self._report(
                    f"entry {entry_id} leaves {balance.of(book):,} in account {entry.account} of ledger {entry.ledger}, book"
                    f" {book}; expected 0 or more"
                )

    def _report(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
