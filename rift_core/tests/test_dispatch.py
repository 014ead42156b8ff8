"""Who answers an exit."""

from __future__ import annotations

from typing import Any

import pytest

from rift_core.dispatch import Dispatcher
from rift_core.errors import ConfigError, UnhandledExitError
from rift_core.exits import Exit, ExitHandler, ExitKind, Resume, Stop


def handler(
    name: str, where: range | None, answer: Any, *, kind: ExitKind = ExitKind.MMIO, fallback: bool = False
) -> ExitHandler:
    return ExitHandler(name, frozenset({kind}), where, lambda vcpu, exit: answer, fallback=fallback)


def mmio(address: int) -> Exit:
    return Exit(ExitKind.MMIO, address, 4, 0, True)


VCPU: Any = None


def test_the_owner_of_the_address_answers() -> None:
    dispatcher = Dispatcher([handler("a", range(0, 16), Resume(1)), handler("b", range(16, 32), Resume(2))])
    assert dispatcher.dispatch(VCPU, mmio(15)) == Resume(1)
    assert dispatcher.dispatch(VCPU, mmio(16)) == Resume(2)


def test_an_overlap_names_both_handlers_and_the_range() -> None:
    with pytest.raises(ConfigError, match=r"'a' and 'b' both claim MMIO 0x8-0xf"):
        Dispatcher([handler("a", range(0, 16), None), handler("b", range(8, 32), None)])


def test_fallbacks_come_last_and_may_overlap() -> None:
    dispatcher = Dispatcher(
        [
            handler("late", None, Resume(3), fallback=True),
            handler("later", range(0, 99), Resume(4), fallback=True),
            handler("owner", range(0, 16), None),
            handler("taker", range(16, 32), Resume(1)),
        ]
    )
    assert dispatcher.dispatch(VCPU, mmio(3)) == Resume(3)
    assert dispatcher.dispatch(VCPU, mmio(17)) == Resume(1)
    assert dispatcher.asked(mmio(3)) == ("owner", "late", "later")


def test_nobody_answering_is_an_error_that_says_who_was_asked() -> None:
    dispatcher = Dispatcher([handler("a", range(0, 16), None)])
    with pytest.raises(UnhandledExitError, match=r"asked: a") as caught:
        dispatcher.dispatch(VCPU, mmio(3))
    assert caught.value.handlers == ("a",)
    with pytest.raises(UnhandledExitError, match="no handler is installed"):
        dispatcher.dispatch(VCPU, mmio(99))


@pytest.mark.parametrize(
    ("kind", "reason"), [(ExitKind.HALT, "halt"), (ExitKind.POWER_OFF, "power-off"), (ExitKind.RESET, "reset")]
)
def test_an_orderly_end_needs_no_handler(kind: ExitKind, reason: str) -> None:
    assert Dispatcher([]).dispatch(VCPU, Exit(kind)) == Stop(0, reason)


def test_observers_see_exits_before_their_handler() -> None:
    seen: list[Exit] = []
    dispatcher = Dispatcher([handler("a", range(0, 16), Resume(5))])
    dispatcher.observe(ExitKind.MMIO, lambda vcpu, exit: seen.append(exit))
    dispatcher.dispatch(VCPU, mmio(1))
    dispatcher.dispatch(VCPU, Exit(ExitKind.HALT))
    assert seen == [mmio(1)]


def test_observers_come_and_go_by_themselves() -> None:
    first: list[Exit] = []
    second: list[Exit] = []
    dispatcher = Dispatcher([handler("a", range(0, 16), Resume(5))])
    stop = dispatcher.observe(ExitKind.MMIO, lambda vcpu, exit: first.append(exit))
    dispatcher.observe(ExitKind.MMIO, lambda vcpu, exit: second.append(exit))
    dispatcher.dispatch(VCPU, mmio(1))
    stop()
    stop()
    dispatcher.dispatch(VCPU, mmio(2))
    assert first == [mmio(1)]
    assert second == [mmio(1), mmio(2)]


def test_an_observer_may_leave_while_it_is_called() -> None:
    seen: list[Exit] = []
    dispatcher = Dispatcher([handler("a", range(0, 16), Resume(5))])

    def once(vcpu: object, exit: Exit) -> None:
        seen.append(exit)
        stop()

    stop = dispatcher.observe(ExitKind.MMIO, once)
    later: list[Exit] = []
    dispatcher.observe(ExitKind.MMIO, lambda vcpu, exit: later.append(exit))
    assert dispatcher.dispatch(VCPU, mmio(1)) == Resume(5)
    assert dispatcher.dispatch(VCPU, mmio(2)) == Resume(5)
    assert seen == [mmio(1)]
    assert later == [mmio(1), mmio(2)]


def test_an_answer_that_nobody_has() -> None:
    dispatcher = Dispatcher([handler("a", range(0, 16), Resume(5))])
    assert dispatcher.answer(VCPU, mmio(1)) == Resume(5)
    assert dispatcher.answer(VCPU, mmio(99)) is None
    with pytest.raises(UnhandledExitError) as caught:
        dispatcher.dispatch(VCPU, mmio(99))
    assert str(caught.value) == str(dispatcher.unanswered(mmio(99)))


@pytest.mark.parametrize("where", [range(4, 4), range(0, 8, 2)])
def test_a_range_that_is_none_is_refused(where: range) -> None:
    with pytest.raises(ConfigError, match="not a range"):
        Dispatcher([handler("a", where, None)])
