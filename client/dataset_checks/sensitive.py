"""Secrets and personal data in texts, where a policy asks for them. Patterns that are sure, rather than many."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dataset_checks.faults import Code

_SECRETS = {
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
}
_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b")
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_PHONE = re.compile(r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}(?!\w)")
_SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_EXAMPLE_DOMAINS = ("example.com", "example.org", "example.net", ".example", ".invalid", ".test")


def look_for_sensitive(text: str) -> Iterator[tuple[Code, str]]:
    """Kinds of secrets and of personal data in `text`, one of each kind. What was found is not repeated."""
    for what, pattern in _SECRETS.items():
        if found := pattern.search(text):
            yield Code.SECRET, f"holds {what} at character {found.start() + 1}; expected none"
    for what, place in _personal(text):
        yield Code.PERSONAL_DATA, f"holds {what} at character {place + 1}; expected none"


def _personal(text: str) -> Iterator[tuple[str, int]]:
    if "@" in text:
        mail = next((one for one in _EMAIL.finditer(text) if not one[0].lower().endswith(_EXAMPLE_DOMAINS)), None)
        if mail is not None:
            yield "an e-mail address", mail.start()
    if "+" in text and (phone := _PHONE.search(text)):
        yield "a telephone number", phone.start()
    if card := next((one for one in _CARD.finditer(text) if _luhn(one[0])), None):
        yield "a payment card's number", card.start()
    if number := _SOCIAL_SECURITY.search(text):
        yield "a social security number", number.start()
    if account := next((one for one in _IBAN.finditer(text) if _iban(one[0])), None):
        yield "a bank account's number", account.start()


def _luhn(text: str) -> bool:
    digits = [int(one) for one in text if one.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    compact = text.replace(" ", "")
    return 15 <= len(compact) <= 34 and int("".join(str(int(one, 36)) for one in compact[4:] + compact[:4])) % 97 == 1
