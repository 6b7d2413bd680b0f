"""Some thousands of hostile requests to every method: each is answered in the contract's form, and none with a fault of ours.

`python -m benchmarks.fuzz` sends a million of the same kind.
"""

from __future__ import annotations

from benchmarks.fuzz import Findings, credentials, fuzz, methods
from benchmarks.hostile import Hostile
from tests.integration.control_plane.callers import ADMIN_TOKEN, OTHER_PROJECT, PROJECT, WORKER_TOKEN, attempt_token, channel_to
from tests.integration.control_plane.conftest import Api

REQUESTS = 4_000
SEED = 20_260_501


def test_a_seed_makes_the_same_requests_again_and_meets_every_method() -> None:
    first, second = Hostile(methods(), SEED), Hostile(methods(), SEED)
    made = [first.next() for _ in range(2_000)]
    assert made == [second.next() for _ in range(2_000)]
    assert {method.full_name for method, _ in made} == {method.full_name for method in methods()}


async def test_no_request_is_answered_with_a_fault_of_ours(api: Api) -> None:
    job_id, lease_id = await api.leased()
    source = Hostile(methods(), SEED, (PROJECT, OTHER_PROJECT, job_id, job_id, lease_id, "questions", "base", "assistant"))
    findings = Findings()
    async with channel_to(api.port, None) as channel:
        held = credentials(ADMIN_TOKEN, WORKER_TOKEN, attempt_token(job_id, 1))
        await fuzz([channel], source, REQUESTS, held, findings, at_once=16)
    assert not findings.faults, "\n".join(findings.faults[:10])
    assert not findings.formless, "\n".join(findings.formless[:10])
    assert sum(findings.codes.values()) == REQUESTS
    assert len(findings.codes) >= 5, "requests that all end alike have tried little"
    assert (await api.get(job_id)).job_id == job_id
