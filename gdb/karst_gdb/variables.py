"""Which variable of which frame of which thread holds a pointer into a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import gdb

from karst_gdb.registers import selection_kept

# Bounds: a search in a program with thousands of threads, or deep recursion, has to end.
THREADS, FRAMES, VARIABLES = 1000, 200, 20000
_STACK_BYTES = 256 * 1024
_ELEMENTS, _DEPTH = 64, 6
_MASK = (1 << 64) - 1

_POINTERS = (gdb.TYPE_CODE_PTR, gdb.TYPE_CODE_REF, getattr(gdb, "TYPE_CODE_RVALUE_REF", gdb.TYPE_CODE_REF))
_AGGREGATES = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)


@dataclass(frozen=True)
class Holder:
    """A variable that points into a block. name is an expression in its frame: "request.buffer"."""

    thread: int
    frame: int
    name: str
    function: str

    def __str__(self) -> str:
        return f"thread {self.thread}, frame {self.frame}, {self.name} in {self.function}"


@dataclass
class Search:
    """A search for variables that point into [start, end)."""

    start: int
    end: int
    holders: list[Holder] = field(default_factory=list)
    variables: int = 0
    cut: str = ""  # what was not looked at, for a person

    def _points_here(self, value: gdb.Value, code: int) -> bool:
        if code != gdb.TYPE_CODE_PTR:
            value = value.referenced_value().address
        return self.start <= int(value) & _MASK < self.end

    def _paths(self, name: str, value: gdb.Value, depth: int) -> Iterator[str]:
        """Expressions under a variable that point here."""
        kind = value.type.strip_typedefs()
        if kind.code in _POINTERS:
            if self._points_here(value, kind.code):
                yield name
        elif depth == _DEPTH:
            return
        elif kind.code in _AGGREGATES:
            for member in kind.fields()[:_ELEMENTS]:
                if not hasattr(member, "bitpos"):  # static: not in this object
                    continue
                path = name if member.is_base_class or not member.name else f"{name}.{member.name}"
                yield from self._paths(path, value[member], depth + 1)
        elif kind.code == gdb.TYPE_CODE_ARRAY and kind.target().strip_typedefs().code in _POINTERS + _AGGREGATES:
            low, high = kind.range()
            for index in range(low, min(high, low + _ELEMENTS - 1) + 1):
                yield from self._paths(f"{name}[{index}]", value[index], depth + 1)

    def _look_at_variable(self, symbol: gdb.Symbol, frame: gdb.Frame, thread: int, level: int) -> None:
        self.variables += 1
        try:
            value = frame.read_var(symbol)
            if value.is_optimized_out:
                return
            function = frame.name() or f"{frame.pc():#x}"
            for path in self._paths(symbol.name, value, 0):
                self.holders.append(Holder(thread, level, path, function))
        except (gdb.error, ValueError, TypeError):
            return  # not readable here: an unset pointer's target, a register that was not saved

    def _look_at_frame(self, frame: gdb.Frame, thread: int, level: int) -> None:
        try:
            block = frame.block()
        except RuntimeError:  # no debug information for this code
            return
        seen: set[str] = set()
        while block is not None and not block.is_static and not block.is_global:
            for symbol in block:
                # An inner variable hides an outer one of its name.
                if (symbol.is_argument or symbol.is_variable) and symbol.name not in seen:
                    seen.add(symbol.name)
                    if symbol.addr_class != gdb.SYMBOL_LOC_STATIC:  # the engine names what is static
                        self._look_at_variable(symbol, frame, thread, level)
            if block.function is not None:
                return
            block = block.superblock

    def _look_at_thread(self, thread: gdb.InferiorThread) -> None:
        frame = gdb.newest_frame()
        level = 0
        while frame is not None and frame.is_valid():
            if level == FRAMES or self.variables >= VARIABLES:
                self.cut = f"only {level} frames of thread {thread.num} were looked at"
                return
            self._look_at_frame(frame, thread.num, level)
            level += 1
            try:
                frame = frame.older()
            except gdb.error:  # the unwinder is at its wits' end
                return

    def _may_hold(self, frame: gdb.Frame, inferior: gdb.Inferior) -> bool:
        """Whether a word on the thread's stack or in its registers points here. Cheap, so that only the
        threads that matter are unwound."""
        try:
            for register in frame.architecture().registers("general"):
                value = frame.read_register(register.name)
                if value.type.sizeof == 8 and self.start <= int(value) & _MASK < self.end:
                    return True
        except (gdb.error, ValueError, AttributeError):
            return True
        stack = int(frame.read_register("sp")) & ~7
        return any(self.start <= word < self.end for word in _words(inferior, stack))

    def run(self) -> Search:
        inferior = gdb.selected_inferior()
        with selection_kept():
            threads = sorted(inferior.threads(), key=lambda thread: thread.num)
            if len(threads) > THREADS:
                self.cut = f"only {THREADS:,} of {len(threads):,} threads were looked at"
            for thread in threads[:THREADS]:
                try:
                    thread.switch()
                    if self._may_hold(gdb.newest_frame(), inferior):
                        self._look_at_thread(thread)
                except gdb.error:  # it runs, or is gone
                    continue
        return self


def _words(inferior: gdb.Inferior, stack: int) -> memoryview:
    """The words of a stack from stack on, as far as they can be read."""
    size = _STACK_BYTES
    while size >= 4096:
        # Whole pages, so that the last one that is there is read to its end.
        end = (stack + size) & ~4095
        try:
            return memoryview(inferior.read_memory(stack, end - stack)).cast("B").cast("Q")
        except gdb.MemoryError:
            size //= 2
    return memoryview(b"").cast("B").cast("Q")
