"""Detours: machine code that holds each call of an allocator's function against traps, in memory that the
program's files leave unused.

The first instructions of a function are replaced by a jump to the zeros behind its module's text. There stand the
tests, then the instructions that were replaced, then a jump to what is behind them. A call that meets a
trap passes a `nop` on its way: a debugger that wants to know puts a breakpoint there, and one that is gone
leaves nothing that could do harm. Nothing here touches a process: code is made from bytes, and put in place by
who asked for it, while all threads are stopped.

The tests use r10, r11, rax and the flags, which no function of the System V ABI gets anything in (but for the
number of vector registers of variadic ones), and neither stack nor calls."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import karst_x86 as x86
from karst_elf import Read, Segment

_PAGE = 4096
_JUMP = 5
_NO_LIMIT = (1 << 64) - 1

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R10, R11 = 0, 1, 2, 3, 4, 5, 6, 7, 10, 11


class Refused(Exception):
    """Why there can be no detour, in one line."""


# ---- what is tested ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arguments:
    """Where a function of the allocator gets what traps look at."""

    symbols: tuple[str, ...]
    size: tuple[int, ...] = ()  # one register, or two whose product it is
    pointer: Optional[int] = None  # what is freed or handed to realloc
    alignment: Optional[int] = None


ARGUMENTS: dict[str, Arguments] = {
    "malloc": Arguments(("malloc",), (RDI,)),
    "calloc": Arguments(("calloc",), (RDI, RSI)),
    "realloc": Arguments(("realloc",), (RSI,), RDI),
    "reallocarray": Arguments(("reallocarray",), (RSI, RDX), RDI),
    "memalign": Arguments(("memalign",), (RSI,), None, RDI),
    "posix_memalign": Arguments(("posix_memalign",), (RDX,), None, RSI),
    "aligned_alloc": Arguments(("aligned_alloc",), (RSI,), None, RDI),
    "valloc": Arguments(("valloc",), (RDI,)),
    "pvalloc": Arguments(("pvalloc",), (RDI,)),
    "new": Arguments(("_Znwm", "_ZnwmRKSt9nothrow_t", "_ZnwmSt11align_val_t",
                      "_ZnwmSt11align_val_tRKSt9nothrow_t"), (RDI,)),
    "new[]": Arguments(("_Znam", "_ZnamRKSt9nothrow_t", "_ZnamSt11align_val_t",
                        "_ZnamSt11align_val_tRKSt9nothrow_t"), (RDI,)),
    "free": Arguments(("free",), (), RDI),
    "delete": Arguments(("_ZdlPv", "_ZdlPvRKSt9nothrow_t", "_ZdlPvm", "_ZdlPvSt11align_val_t",
                         "_ZdlPvmSt11align_val_t", "_ZdlPvSt11align_val_tRKSt9nothrow_t"), (), RDI),
    "delete[]": Arguments(("_ZdaPv", "_ZdaPvRKSt9nothrow_t", "_ZdaPvm", "_ZdaPvSt11align_val_t",
                           "_ZdaPvmSt11align_val_t", "_ZdaPvSt11align_val_tRKSt9nothrow_t"), (), RDI),
}


@dataclass(frozen=True)
class Condition:
    """What a call has to meet, all of it. Ranges hold both their ends."""

    key: int  # the trap's number
    size: Optional[tuple[int, int]] = None
    sizes: tuple[int, ...] = ()
    freed: Optional[tuple[int, int]] = None
    caller: Optional[tuple[int, int]] = None
    thread_pointer: Optional[int] = None
    counter: int = 0  # address of 8 bytes that hold how many matches are to be skipped; 0: none


# ---- an assembler for what is needed ---------------------------------------------------------------


class _Code:
    """Code for an address, with labels."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.bytes = bytearray()
        self._labels: dict[str, int] = {}
        self._uses: list[tuple[int, str]] = []

    @property
    def here(self) -> int:
        return self.address + len(self.bytes)

    def label(self, name: str) -> None:
        self._labels[name] = self.here

    def add(self, *code: int) -> None:
        self.bytes += bytes(code)

    def jump(self, name: str, condition: Optional[int] = None) -> None:
        """jmp or, with the low four bits of its opcode, a conditional jump."""
        self.add(*([0xe9] if condition is None else [0x0f, 0x80 | condition]))
        self._uses.append((len(self.bytes), name))
        self.add(0, 0, 0, 0)

    def _modrm(self, opcode: int, reg: int, rm: int) -> None:
        """opcode reg, rm between 64-bit registers; the opcode's form is "r/m, r"."""
        self.add(0x48 | (reg >> 3) << 2 | rm >> 3, opcode, 0xc0 | (reg & 7) << 3 | rm & 7)

    def load(self, register: int, value: int) -> None:
        self.add(0x48 | register >> 3, 0xb8 | register & 7)
        self.bytes += struct.pack("<Q", value & _NO_LIMIT)

    def move(self, to: int, source: int) -> None:
        self._modrm(0x89, source, to)

    def add_register(self, to: int, source: int) -> None:
        self._modrm(0x01, source, to)

    def test(self, register: int) -> None:
        self._modrm(0x85, register, register)

    def multiply(self, to: int, source: int) -> None:
        self.add(0x48 | (to >> 3) << 2 | source >> 3, 0x0f, 0xaf, 0xc0 | (to & 7) << 3 | source & 7)

    def compare(self, register: int, value: int, scratch: int) -> None:
        if value < 1 << 31:  # the immediate is sign-extended
            self.add(0x48 | register >> 3, 0x81, 0xf8 | register & 7)
            self.bytes += struct.pack("<I", value)
        else:
            self.load(scratch, value)
            self._modrm(0x39, scratch, register)

    def finish(self) -> bytes:
        for at, name in self._uses:
            struct.pack_into("<i", self.bytes, at, self._labels[name] - (self.address + at + 4))
        return bytes(self.bytes)


_OVERFLOW, _EQUAL, _NOT_EQUAL, _ABOVE, _BELOW, _SIGN, _NOT_SIGN = 0, 4, 5, 7, 2, 8, 9


def _test_range(code: _Code, register: int, low: int, high: int, miss: str) -> None:
    """Jumps to miss unless low <= register <= high."""
    work, scratch = (R10 if register == R11 else R11), RAX
    if low == high:
        code.compare(register, low, scratch)
        code.jump(miss, _NOT_EQUAL)
    elif low == 0:
        code.compare(register, high, scratch)
        code.jump(miss, _ABOVE)
    elif high == _NO_LIMIT:
        code.compare(register, low, scratch)
        code.jump(miss, _BELOW)
    else:
        code.load(work, -low)
        code.add_register(work, register)
        code.compare(work, high - low, scratch)
        code.jump(miss, _ABOVE)


def _test_size(code: _Code, arguments: Arguments, condition: Condition, miss: str, hit: str) -> None:
    register = arguments.size[0]
    if len(arguments.size) == 2:  # a product that is 2**63 or more is never handed out
        first, second = arguments.size
        code.move(R11, first)
        code.multiply(R11, second)
        code.jump(miss, _OVERFLOW)
        for sign in (first, R11):
            code.test(sign)
            code.jump(miss, _SIGN)
        register = R11
    if condition.size is not None:
        _test_range(code, register, *condition.size, miss)
    for size in condition.sizes:
        code.compare(register, size, RAX)
        code.jump(hit, _EQUAL)


def _test(code: _Code, arguments: Arguments, condition: Condition, miss: str, hit: str) -> None:
    """Jumps to hit, or to miss, which comes next."""
    if condition.thread_pointer is not None:
        code.add(0x64, 0x4c, 0x8b, 0x14, 0x25, 0, 0, 0, 0)  # mov %fs:0, %r10: the thread pointer itself
        code.load(R11, condition.thread_pointer)
        code._modrm(0x39, R11, R10)
        code.jump(miss, _NOT_EQUAL)
    if condition.caller is not None:
        code.add(0x4c, 0x8b, 0x1c, 0x24)  # mov (%rsp), %r11: the return address
        _test_range(code, R11, *condition.caller, miss)
    if condition.freed is not None and arguments.pointer is not None:
        _test_range(code, arguments.pointer, *condition.freed, miss)
    if arguments.size and (condition.size is not None or condition.sizes):
        simple = (condition.size is not None and condition.size[0] == condition.size[1]
                  and len(arguments.size) == 1 and not condition.sizes)
        if simple:  # the usual one: no jump is taken by a call that does not match
            code.compare(arguments.size[0], condition.size[0], RAX)  # type: ignore[index]
            code.jump(hit, _EQUAL)
            return
        _test_size(code, arguments, condition, miss, hit)
        if condition.sizes:  # a miss goes on with what follows
            return
    code.jump(hit)


# ---- detours -----------------------------------------------------------------------------------------

# In front of a detour's code: for whoever finds one whose debugger is gone.
_MAGIC = b"karst detour 1\0\0"
# Magic, checksum, address of the patch, bytes of the patch, of the detour, where the displaced instructions begin,
# the original bytes.
_HEADER = struct.Struct("<16sQQIII28s")
HEADER_BYTES = _HEADER.size
_ALIGNMENT = 16


@dataclass(frozen=True)
class Place:
    """A stretch of a detour's code, [start, end), and where a thread in it is as if there were no detour."""

    start: int
    end: int
    original: int
    frame: int  # bytes from rsp up to the caller's frame
    saved: dict[int, int]  # pushed registers by number: bytes below the caller's frame


@dataclass(frozen=True)
class Detour:
    patch: int  # address
    original: bytes  # what was there
    jump: bytes  # what is there now, as long
    start: int  # of header and code
    code: bytes
    stops: dict[int, int]  # address of the `nop` that a match passes: the trap's key
    places: tuple[Place, ...]
    displaced: dict[int, int]  # address of each replaced instruction: where it is now

    @property
    def end(self) -> int:
        return self.start + len(self.code)

    def place(self, pc: int) -> Optional[Place]:
        return next((place for place in self.places if place.start <= pc < place.end), None)

    def outside(self, pc: int) -> Optional[int]:
        """Where a thread that is at pc, in this detour, goes on without it; None: it is not in it. A thread that is
        still being tested begins anew, which changes nothing."""
        place = self.place(pc)
        return None if place is None else place.original

    def inside(self, pc: int) -> Optional[int]:
        """Where a thread that is at pc, in the instructions that are to be replaced, goes on; None: it is in none.
        One in front of the first stays: it will take the jump."""
        if not self.patch < pc < self.patch + len(self.original):
            return None
        if pc not in self.displaced:
            raise Refused(f"a thread is at {pc:#x}, within an instruction that would be replaced")
        return self.displaced[pc]


def _instructions(text: bytes, entry: int, size: int) -> list[x86.Instruction]:
    """Those to replace. text: the function's bytes from its entry on."""
    found: list[x86.Instruction] = []
    at = len(x86.ENDBR64) if text.startswith(x86.ENDBR64) else 0  # indirect calls have to land there
    begin = at
    while at - begin < _JUMP:
        if found and x86.ends_flow(found[-1]):
            raise Refused(f"its code ends {at - begin} bytes behind its entry; a jump takes {_JUMP}")
        try:
            instruction = x86.decode(text, at, entry + at)
        except x86.UnknownInstruction as unknown:
            raise Refused(f"its first instructions are not known: {unknown}") from None
        reason = x86.why_not_movable(instruction)
        if reason:
            raise Refused(f"its first instructions can't be moved: {reason}")
        found.append(instruction)
        at += len(instruction.code)
    if size and at > size:
        raise Refused(f"it has {size} bytes only")
    return found


def _check_no_way_in(text: bytes, entry: int, size: int, low: int, high: int) -> None:
    """No jump of the function itself may lead between low and high."""
    body = text[:size] if size else text[:_PAGE]
    end = entry
    for instruction in x86.sweep(body, entry):
        end = instruction.end
        if instruction.target is not None and low < instruction.target < high:
            raise Refused(f"it jumps back to its own first instructions, from {instruction.address:#x}")
        if not size and x86.ends_flow(instruction) and end > entry + 256:
            return
    if end < entry + len(body) - 15:
        raise Refused(f"its code can't be read beyond {end:#x}")


_FAR = re.compile(rb"[\xe8\xe9]|\x0f[\x80-\x8f]", re.DOTALL)


def check_no_far_way_in(text: bytes, address: int, patches: Sequence[tuple[int, int]]) -> None:
    """No 32-bit jump anywhere in a module's text may lead into the middle of what is replaced."""
    middles = {middle for start, size in patches for middle in range(start + 1, start + size)}
    for match in _FAR.finditer(text):
        at = match.end()
        if at + 4 > len(text):
            break
        target = address + at + 4 + struct.unpack_from("<i", text, at)[0]
        if target in middles:
            raise Refused(f"{address + match.start():#x} jumps into its first instructions")


def _emit_tests(code: _Code, arguments: Arguments, conditions: Sequence[Condition]) -> None:
    for index, condition in enumerate(conditions):
        code.label(f"test {index}")
        _test(code, arguments, condition, f"test {index + 1}", f"hit {index}")
    code.label(f"test {len(conditions)}")


def _emit_displaced(code: _Code, instructions: Sequence[x86.Instruction]) -> tuple[list[Place], dict[int, int]]:
    places: list[Place] = []
    displaced: dict[int, int] = {}
    frame = 8
    saved: dict[int, int] = {}
    for instruction in instructions:
        start = code.here
        displaced[instruction.address] = start
        code.bytes += x86.moved(instruction, start)
        places.append(Place(start, code.here, instruction.address, frame, dict(saved)))
        pushed = x86.pushed_register(instruction)
        frame += x86.stack_growth(instruction) or 0
        if pushed is not None:
            saved.setdefault(pushed, frame)
    if not x86.ends_flow(instructions[-1]):
        start = code.here
        code.bytes += x86.jump(start, instructions[-1].end)
        places.append(Place(start, code.here, instructions[-1].end, frame, dict(saved)))
    return places, displaced


def _emit_hits(code: _Code, conditions: Sequence[Condition]) -> dict[int, int]:
    stops = {}
    for index, condition in enumerate(conditions):
        code.label(f"hit {index}")
        if condition.counter:
            code.add(0xf0, 0x48, 0xff, 0x0d)  # lock decq counter(%rip)
            code.bytes += struct.pack("<i", condition.counter - (code.here + 4))
            code.jump(f"test {index + 1}", _NOT_SIGN)
        stops[code.here] = condition.key
        code.add(0x90)
        code.jump(f"test {index + 1}")
    return stops


def build(text: bytes, entry: int, size: int, arguments: Arguments, conditions: Sequence[Condition],
          start: int) -> Detour:
    """A detour for the function at entry whose bytes, and a page more or so, are text; size: of the function, 0
    where it is not known. The code is for `start`, a multiple of 16. Refused says why there can be none."""
    instructions = _instructions(text, entry, size)
    patch, end = instructions[0].address, instructions[-1].end
    _check_no_way_in(text, entry, size, patch, end)
    code = _Code(start + HEADER_BYTES)
    try:
        _emit_tests(code, arguments, conditions)
        tested = code.here
        places, displaced = _emit_displaced(code, instructions)
        hits = code.here
        stops = _emit_hits(code, conditions)
        x86.jump(patch, start + HEADER_BYTES)
    except (x86.UnknownInstruction, struct.error) as error:
        raise Refused(f"it is too far from the unused memory: {error}") from None
    original = text[patch - entry:end - entry]
    places = [Place(start + HEADER_BYTES, tested, patch, 8, {}), *places, Place(hits, code.here, patch, 8, {})]
    body = code.finish()
    body += b"\xcc" * (-len(body) % _ALIGNMENT)
    return Detour(patch, original, _jump(patch, start, original), start,
                  _header(patch, original, HEADER_BYTES + len(body), tested - start) + body, stops, tuple(places),
                  displaced)


def _jump(patch: int, start: int, original: bytes) -> bytes:
    return x86.jump(patch, start + HEADER_BYTES) + b"\x90" * (len(original) - _JUMP)


def _header(patch: int, original: bytes, size: int, displaced: int) -> bytes:
    fields = (patch, len(original), size, displaced, original)
    return _HEADER.pack(_MAGIC, _checksum(_HEADER.pack(_MAGIC, 0, *fields)), *fields)


def _checksum(header: bytes) -> int:
    """Of a header whose checksum is 0 (FNV-1a)."""
    value = 0xcbf29ce484222325
    for byte in header:
        value = (value ^ byte) * 0x100000001b3 & _NO_LIMIT
    return value


def leftovers(data: bytes, address: int) -> list[Detour]:
    """Detours in the unused memory of a module that nobody knows of: their debugger was killed. They have no stops, and
    may have a breakpoint's trap instruction among their code."""
    found = []
    at = data.find(_MAGIC)
    while at >= 0:
        detour = _leftover(data[at:], address + at)
        if detour is not None:
            found.append(detour)
        at = data.find(_MAGIC, at + 1)
    return found


def _leftover(data: bytes, start: int) -> Optional[Detour]:
    if len(data) < HEADER_BYTES:
        return None
    _, checksum, patch, length, size, at, padded = _HEADER.unpack_from(data)
    original = padded[:length]
    if checksum != _checksum(_HEADER.pack(_MAGIC, 0, patch, length, size, at, padded)) \
            or not _JUMP <= length <= len(padded) or not HEADER_BYTES <= at < size <= len(data):
        return None
    code = _Code(start + at)
    places, displaced = _emit_displaced(code, list(x86.sweep(original, patch)))
    places = [Place(start + HEADER_BYTES, start + at, patch, 8, {}), *places,
              Place(code.here, start + size, patch, 8, {})]
    return Detour(patch, original, _jump(patch, start, original), start, data[:size], {}, tuple(places), displaced)


def counters_of(detour: Detour) -> list[int]:
    """Addresses of the counters that its code counts down."""
    return [detour.start + match.end() + struct.unpack_from("<i", detour.code, match.end() - 4)[0]
            for match in re.finditer(rb"\xf0\x48\xff\x0d.{4}", detour.code, re.DOTALL)]


# ---- unused memory -----------------------------------------------------------------------------------


def tail(segment: Segment) -> tuple[int, int]:
    """Start and size of what is mapped behind a segment's end, up to the page's."""
    return segment.end, -segment.end % _PAGE


# ---- threads that a signal interrupted --------------------------------------------------------------

# struct rt_sigframe of the kernel, arch/x86/include/asm/sigframe.h: the restorer's address, then struct ucontext.
_SAVED_SP, _SAVED_PC, _SAVED_CS, _FRAME_BYTES = 168, 176, 192, 200
_USER_CS = 0x33
# What a restorer does: mov $15, %rax (or %eax); syscall. 15 is rt_sigreturn.
_RESTORERS = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")
_STACKS_MAX = 16
_STACK_BYTES = 64 << 20


def interrupted(read: Read, sp: int, stack_end: Callable[[int], int],
                code_ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Where a thread goes on when the signal handlers that it is in return: for each the address of the saved
    program counter, and what that is. stack_end gives where the mapping that holds an address ends (0: there is
    none)."""
    if not code_ranges:
        return
    lowest, highest = min(low for low, _ in code_ranges), max(high for _, high in code_ranges)
    restorers: dict[int, bool] = {}
    pending = [sp]
    looked: dict[int, int] = {}  # end of a stack: from where on it was looked through
    for _ in range(_STACKS_MAX):
        if not pending:
            return
        start = pending.pop() & ~7
        end = stack_end(start)
        upto = looked.get(end, end)
        if not end or start >= upto:
            continue
        looked[end] = start
        data = bytes(read(start, min(upto - start, _STACK_BYTES)))
        words = memoryview(data[:len(data) // 8 * 8]).cast("Q")
        for index in [index for index, word in enumerate(words) if lowest <= word < highest]:
            word, at = words[index], start + 8 * index
            if word not in restorers:
                restorers[word] = (any(low <= word < high for low, high in code_ranges)
                                   and bytes(read(word, 9)).startswith(_RESTORERS))
            frame = bytes(read(at, _FRAME_BYTES)) if restorers[word] else b""
            if len(frame) < _FRAME_BYTES or frame[_SAVED_CS] != _USER_CS:
                continue
            yield at + _SAVED_PC, struct.unpack_from("<Q", frame, _SAVED_PC)[0]
            pending.append(struct.unpack_from("<Q", frame, _SAVED_SP)[0])
