"""One is spoken of as one."""

from __future__ import annotations

import pytest

from scheduler.core.reasons import AdmissionWindow, ExceedsMaximum, Fragmented, NoCapacity, QuotaReached, Reason
from scheduler.core.words import words


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (NoCapacity(1, 1, 2, "h100"), "asks for 1 accelerator of kind h100; 1 of 2 is free"),
        (NoCapacity(2, 0, 2, "h100"), "asks for 2 accelerators of kind h100; 0 of 2 are free"),
        (NoCapacity(1, 0, 2, "h100", "cpu_millis"), "asks for 1 thousandth of a CPU;"),
        (ExceedsMaximum(2, 1, "h100", "cpu_millis"), "asks for 2 thousandths of a CPU;"),
        (QuotaReached("red", "h100", "accelerators", 1, 1, 1, 1), "asks for 1 accelerator of pool h100;"),
        (QuotaReached("red", "h100", "memory_mib", 2, 1, 1, 1), "asks for 2 MiB of memory of pool h100;"),
        (AdmissionWindow(1, 1), "1 of the project's jobs is under way;"),
        (AdmissionWindow(2, 2), "2 of the project's jobs are under way;"),
        (Fragmented(2, 1, 4, "h100"), "has 2 members, each whole on one worker; 1 fits now, with 4 accelerators"),
    ],
)
def test_numbers_agree_with_what_is_counted(reason: Reason, said: str) -> None:
    assert said in words(reason)
