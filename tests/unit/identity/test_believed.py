from __future__ import annotations

import asyncio

import pytest

from control_plane.identity.believed import Believed


class Source:
    """Counts looks; answers when told to."""

    def __init__(self) -> None:
        self.looks = 0
        self.answer = "first"
        self.holds_seconds = 1_000.0
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def look(self) -> tuple[str, float]:
        self.looks += 1
        answer = self.answer
        await self.going_on.wait()
        if answer == "refused":
            raise PermissionError(answer)
        return answer, self.holds_seconds


async def test_an_answer_is_believed_and_then_not() -> None:
    source, believed = Source(), Believed[str](1_000)
    assert [await believed.get("k", source.look) for _ in range(3)] == ["first"] * 3
    assert source.looks == 1
    source.answer = "second"
    believed.forget()
    assert await believed.get("k", source.look) == "second"


async def test_an_answer_is_not_believed_beyond_its_own_end() -> None:
    source, believed = Source(), Believed[str](1_000)
    source.holds_seconds = 0
    await believed.get("k", source.look)
    await believed.get("k", source.look)
    assert source.looks == 2


async def test_of_many_who_ask_one_looks_and_one_who_leaves_takes_nothing_from_the_others() -> None:
    source, believed = Source(), Believed[str](1_000)
    source.going_on.clear()
    asking = [asyncio.create_task(believed.get("k", source.look)) for _ in range(64)]
    await asyncio.sleep(0)
    asking[0].cancel()
    source.going_on.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == ["first"] * 63
    assert source.looks == 1


async def test_a_look_that_began_before_the_change_is_neither_kept_nor_joined() -> None:
    source, believed = Source(), Believed[str](1_000)
    source.going_on.clear()
    before = asyncio.create_task(believed.get("k", source.look))
    await asyncio.sleep(0)  # The task begins to look,
    await asyncio.sleep(0)  # and its look to wait.
    believed.forget()
    source.answer = "second"
    after = asyncio.create_task(believed.get("k", source.look))
    source.going_on.set()
    assert await before == "first"
    assert await after == "second"
    assert await believed.get("k", source.look) == "second"


async def test_what_was_refused_is_not_kept() -> None:
    source, believed = Source(), Believed[str](1_000)
    source.answer = "refused"
    for _ in range(2):
        with pytest.raises(PermissionError):
            await believed.get("k", source.look)
    assert source.looks == 2


async def test_no_more_are_kept_than_allowed() -> None:
    source, believed = Source(), Believed[str](1_000, most=10)
    for number in range(11):
        await believed.get(number, source.look)
    await believed.get(10, source.look)
    assert source.looks == 11
    await believed.get(0, source.look)
    assert source.looks == 12
