"""`$_karst_size(p)` and its like: what holds p, for expressions and breakpoint conditions.

An address in no heap is no error, so that a condition can ask any pointer: size, usable and start are then 0,
state and arena "none". What can't be asked at all (no process, no heap) is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import gdb
from karst_engine import Block

from karst_gdb import engine, session
from karst_gdb.expressions import address_of_value

_NOWHERE = "none"
_Answer = Union[int, str]


def _arena(current: engine.Session, block: Block) -> str:
    return current.arena_name(block) or "mapped"


class _Function(gdb.Function):
    def __init__(self, name: str, says: str, answer: Callable[[engine.Session, Block], _Answer],
                 nowhere: _Answer) -> None:
        self.__doc__ = (f"{says}\nUsage: ${name} (ADDRESS)\n"
                        f"ADDRESS may be anywhere in the block. In no heap: {nowhere!r}.")
        self._called = f"${name}"
        self._answer, self._nowhere = answer, nowhere
        super().__init__(name)

    def invoke(self, *arguments: gdb.Value) -> _Answer:
        if len(arguments) != 1:
            raise gdb.GdbError(f"{self._called} takes one address")
        address = address_of_value(arguments[0], f"the argument of {self._called}")
        with session.current() as current:
            block = current.find_block(address)
            return self._nowhere if block is None else self._answer(current, block)


def register() -> None:
    _Function("_karst_size", "Bytes of the block that holds an address, its header included.",
              lambda current, block: block.size, 0)
    _Function("_karst_usable", "Bytes that the program may use in the block that holds an address.",
              lambda current, block: block.usable, 0)
    _Function("_karst_start", "Where the block that holds an address begins for the program: what malloc returned.",
              lambda current, block: block.address, 0)
    _Function("_karst_state", "The state of the block that holds an address: live, free, cached, top or metadata.",
              lambda current, block: engine.state_name(block), _NOWHERE)
    _Function("_karst_arena", "The arena of the block that holds an address; mapped: it has a mapping of its own.",
              _arena, _NOWHERE)
