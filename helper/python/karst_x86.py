"""x86-64 machine code, as far as a detour needs it: how long an instruction is, where it jumps, and the same
instruction for another address. Facts from Intel's Software Developer's Manual, volume 2, appendix A."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

MASK = (1 << 64) - 1
ENDBR64 = b"\xf3\x0f\x1e\xfa"

_ONE_BYTE, _TWO_BYTE, _MAP_38, _MAP_3A = 1, 2, 3, 4  # opcode maps: none, 0F, 0F 38, 0F 3A
_LEGACY_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_RSP = 4


class UnknownInstruction(Exception):
    """Bytes that are no instruction, or one that is not in the tables; str() says which."""


@dataclass(frozen=True)
class Instruction:
    address: int
    code: bytes
    map: int  # opcode map; VEX and EVEX count with the legacy map they stand for
    opcode: int
    prefixes: bytes  # legacy ones, in their order
    rex: int
    modrm: Optional[int]
    relative_at: Optional[int]  # offset of a 32-bit displacement that counts from the instruction's end
    target: Optional[int]  # of a direct jump or call
    vex: bool

    @property
    def end(self) -> int:
        return self.address + len(self.code)

    @property
    def reg(self) -> int:
        """The register or opcode extension in ModRM, without REX."""
        return 0 if self.modrm is None else self.modrm >> 3 & 7


def _ranges(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(found)


# Of the one-byte map. The eight rows of arithmetic (00-3F) repeat themselves.
_ARITHMETIC = frozenset(op for op in range(0x40) if op & 7 < 6)
_MODRM_1 = (frozenset(op for op in _ARITHMETIC if op & 7 < 4)
            | _ranges("63 69 6b 80 81 83-8f c0 c1 c6 c7 d0-d3 d8-df f6 f7 fe ff"))
_IMMEDIATE_8 = frozenset(op for op in _ARITHMETIC if op & 7 == 4) | _ranges(
    "6a 6b 80 83 a8 b0-b7 c0 c1 c6 cd e4-e7")
_IMMEDIATE_Z = frozenset(op for op in _ARITHMETIC if op & 7 == 5) | _ranges("68 69 81 a9 c7")
_PLAIN_1 = _ranges("50-5f 6c-6f 90-99 9b-9f a4-a7 aa-af c3 c9 cb cc cf d7 ec-ef f1 f4 f5 f8-fd")
_SHORT_JUMPS = _ranges("70-7f e0-e3 eb")
# Of the 0F map.
_PLAIN_2 = _ranges("05-09 0b 0e 30-37 77 a0-a2 a8-aa c8-cf")
_INVALID_2 = _ranges("04 0a 0c 24-27 39 3b-3f")
_IMMEDIATE_2 = _ranges("0f 70-73 a4 ac ba c2 c4-c6")

# What a detour moves: nothing that uses its own address in a way that can't be adjusted, changes rsp in a way
# that is not followed, enters the kernel, or must stand alone.
_MOVABLE_1 = _ARITHMETIC | _ranges("50-5b 5d-5f 63 68-6b 70-7f 80 81 83-8b 8d 90 98 99 a8 a9 b0-bf c0 c1 c6 c7"
                                   " d0-d3 e9 eb f6 f7")
_MOVABLE_2 = _ranges("10-17 1e 1f 28-2f 40-4f 54-57 6e 6f 7e 7f 80-8f 90-9f a3 ab af b3 b6 b7 ba bb bc bd be bf d6"
                     " ef")


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise UnknownInstruction("the code ends within an instruction")
        self.at += 1
        return self.data[self.at - 1]


def _skip_address(reader: _Reader, modrm: int) -> Optional[int]:
    """Passes SIB and displacement; returns where a displacement that is relative to rip stands."""
    mode, rm = modrm >> 6, modrm & 7
    if mode == 3:
        return None
    relative = None
    displacement = {0: 0, 1: 1, 2: 4}[mode]
    if rm == 4:
        if reader.byte() & 7 == 5 and mode == 0:
            displacement = 4
    elif rm == 5 and mode == 0:
        relative, displacement = reader.at, 4
    for _ in range(displacement):
        reader.byte()
    return relative


def _immediate_size(map_: int, opcode: int, modrm: Optional[int], wide: bool, short: bool) -> int:
    """Bytes of immediate behind the address. wide: REX.W; short: an operand-size prefix."""
    if map_ == _MAP_3A:
        return 1
    if map_ == _TWO_BYTE:
        return 1 if opcode in _IMMEDIATE_2 else 0
    if map_ != _ONE_BYTE:
        return 0
    z = 2 if short and not wide else 4
    if 0xb8 <= opcode <= 0xbf:
        return 8 if wide else z
    if opcode in (0xf6, 0xf7):
        return 0 if modrm is None or modrm >> 3 & 7 > 1 else (1 if opcode == 0xf6 else z)
    if opcode in (0xc2, 0xca):
        return 2
    if opcode == 0xc8:
        return 3
    if opcode in _IMMEDIATE_8:
        return 1
    return z if opcode in _IMMEDIATE_Z else 0


def _take_vex(reader: _Reader, first: int) -> tuple[int, int]:
    """Behind C5, C4 or 62: the opcode map and the opcode."""
    if first == 0xc5:
        reader.byte()
        return _TWO_BYTE, reader.byte()
    if first == 0xc4:
        chosen = reader.byte() & 0x1f
        reader.byte()
    else:
        chosen = reader.byte() & 7
        reader.byte()
        reader.byte()
    maps = {1: _TWO_BYTE, 2: _MAP_38, 3: _MAP_3A, 5: _MAP_38, 6: _MAP_38}  # 5 and 6: no immediates either
    if chosen not in maps:
        raise UnknownInstruction(f"opcode map {chosen}")
    return maps[chosen], reader.byte()


def _has_modrm(map_: int, opcode: int, text: str) -> bool:
    if map_ == _ONE_BYTE:
        if opcode in _MODRM_1:
            return True
        known = (opcode in _PLAIN_1 or opcode in _IMMEDIATE_8 or opcode in _IMMEDIATE_Z
                 or 0xb8 <= opcode <= 0xbf or opcode in (0xc2, 0xc8, 0xca))
    elif map_ == _TWO_BYTE:
        if opcode not in _PLAIN_2 and opcode not in _INVALID_2:
            return True
        known = opcode in _PLAIN_2
    else:
        return True
    if not known:
        raise UnknownInstruction(text)
    return False


def decode(data: bytes, at: int, address: int) -> Instruction:
    """The instruction that begins at data[at], which is at `address` in memory."""
    reader = _Reader(data, at)
    prefixes, rex, vex = b"", 0, False
    byte = reader.byte()
    while byte in _LEGACY_PREFIXES and len(prefixes) < 8:
        prefixes += bytes([byte])
        byte = reader.byte()
    if byte & 0xf0 == 0x40:
        rex = byte
        byte = reader.byte()
    map_, opcode = _ONE_BYTE, byte
    if byte == 0x0f:
        map_, opcode = _TWO_BYTE, reader.byte()
        if opcode in (0x38, 0x3a):
            map_, opcode = (_MAP_38 if opcode == 0x38 else _MAP_3A), reader.byte()
    elif byte in (0xc4, 0xc5, 0x62):
        vex = True
        map_, opcode = _take_vex(reader, byte)
    text = data[at:at + 8].hex(" ")
    modrm = relative = target = None
    jump = _jump_size(map_, opcode) if not vex else 0
    if jump:
        if 0x66 in prefixes:
            raise UnknownInstruction(text)  # Intel's and AMD's processors differ
        where = reader.at
        for _ in range(jump):
            reader.byte()
        distance = int.from_bytes(data[where:reader.at], "little", signed=True)
        target = address + reader.at - at + distance & MASK
    elif map_ == _ONE_BYTE and 0xa0 <= opcode <= 0xa3 and not vex:
        for _ in range(4 if 0x67 in prefixes else 8):
            reader.byte()
    else:
        if _has_modrm(map_, opcode, text):
            modrm = reader.byte()
            relative = _skip_address(reader, modrm)
        for _ in range(_immediate_size(map_, opcode, modrm, bool(rex & 8), 0x66 in prefixes)):
            reader.byte()
    if reader.at - at > 15:
        raise UnknownInstruction(text)
    return Instruction(address, data[at:reader.at], map_, opcode, prefixes, rex, modrm,
                       None if relative is None else relative - at, target, vex)


def _jump_size(map_: int, opcode: int) -> int:
    """Bytes of a jump's distance; 0: no direct jump or call."""
    if map_ == _ONE_BYTE:
        return 1 if opcode in _SHORT_JUMPS else 4 if opcode in (0xe8, 0xe9) else 0
    return 4 if map_ == _TWO_BYTE and 0x80 <= opcode <= 0x8f else 0


def sweep(data: bytes, address: int) -> Iterator[Instruction]:
    """Instruction by instruction from the first byte on, up to the end or the first that is not known."""
    at = 0
    while at < len(data):
        try:
            instruction = decode(data, at, address + at)
        except UnknownInstruction:
            return
        yield instruction
        at += len(instruction.code)


# ---- moving ------------------------------------------------------------------------------------------


def ends_flow(instruction: Instruction) -> bool:
    """What is behind it is reached by jumps only."""
    return (instruction.map == _ONE_BYTE and not instruction.vex
            and (instruction.opcode in (0xe9, 0xeb, 0xc3, 0xc2, 0xcc)
                 or (instruction.opcode == 0xff and instruction.reg in (4, 5))))


def _writes_rsp(instruction: Instruction) -> bool:
    """Whether it has rsp as a register operand in ModRM, other than as a source that is only read."""
    if instruction.modrm is None or instruction.vex:
        return False
    in_rm = instruction.modrm >> 6 == 3 and instruction.modrm & 7 == _RSP and not instruction.rex & 1
    in_reg = instruction.reg == _RSP and not instruction.rex & 4
    if instruction.map == _ONE_BYTE:
        has_extension = instruction.opcode in (0x80, 0x81, 0x83, 0xc0, 0xc1, 0xc6, 0xc7, 0xd0, 0xd1, 0xd2, 0xd3,
                                               0xf6, 0xf7)
        return in_rm or (in_reg and not has_extension and instruction.opcode != 0x89)
    return instruction.opcode not in range(0x10, 0x30) and (in_rm or in_reg)


def stack_growth(instruction: Instruction) -> Optional[int]:
    """Bytes by which it lowers rsp; None: it changes rsp in a way that is not followed."""
    code = instruction.code
    if instruction.map != _ONE_BYTE or instruction.vex:
        return None if _writes_rsp(instruction) else 0
    if instruction.prefixes and (0x50 <= instruction.opcode <= 0x5f or instruction.opcode in (0x68, 0x6a)):
        return None
    if 0x50 <= instruction.opcode <= 0x57 or instruction.opcode in (0x68, 0x6a):
        return 8
    if 0x58 <= instruction.opcode <= 0x5f:
        return None if instruction.opcode == 0x5c and not instruction.rex & 1 else -8
    if code[:3] == b"\x48\x83\xec":  # sub $imm8, %rsp
        return struct.unpack_from("<b", code, 3)[0]
    if code[:3] == b"\x48\x81\xec":  # sub $imm32, %rsp
        return struct.unpack_from("<i", code, 3)[0]
    return None if _writes_rsp(instruction) else 0


def pushed_register(instruction: Instruction) -> Optional[int]:
    """The number of the register that it pushes."""
    if instruction.map == _ONE_BYTE and 0x50 <= instruction.opcode <= 0x57 and not instruction.prefixes:
        return instruction.opcode - 0x50 + (8 if instruction.rex & 1 else 0)
    return None


def why_not_movable(instruction: Instruction) -> str:
    """The reason why this instruction can't be moved, "" if it can."""
    text = instruction.code.hex(" ")
    if instruction.vex or 0xf0 in instruction.prefixes or 0x67 in instruction.prefixes:
        return f"{text} is not in karst's table of instructions that can be moved"
    if instruction.map == _ONE_BYTE and instruction.opcode == 0xe8:
        return f"{text} is a call"
    movable = {_ONE_BYTE: _MOVABLE_1, _TWO_BYTE: _MOVABLE_2}.get(instruction.map, frozenset())
    is_indirect_jump = instruction.map == _ONE_BYTE and instruction.opcode == 0xff and instruction.reg == 4
    if instruction.opcode not in movable and not is_indirect_jump:
        return f"{text} is not in karst's table of instructions that can be moved"
    repeated = instruction.prefixes and instruction.prefixes[-1] in b"\xf2\xf3"
    if repeated and instruction.map == _ONE_BYTE:
        return f"{text} is not in karst's table of instructions that can be moved"
    if stack_growth(instruction) is None:
        return f"{text} changes the stack pointer"
    return ""


def _fits(distance: int) -> bool:
    return -(1 << 31) <= distance < 1 << 31


def jump(address: int, target: int) -> bytes:
    """jmp target, of 5 bytes."""
    distance = target - address - 5
    if not _fits(distance):
        raise UnknownInstruction(f"{target:#x} is too far from {address:#x} for a jump")
    return b"\xe9" + struct.pack("<i", distance)


def moved(instruction: Instruction, address: int) -> bytes:
    """What does at `address` what the instruction does where it is; short jumps get long. The instruction has
    to be movable."""
    if instruction.target is not None:
        if instruction.map == _ONE_BYTE and instruction.opcode in (0xe9, 0xeb):
            return jump(address, instruction.target)
        distance = instruction.target - address - 6
        if not _fits(distance):
            raise UnknownInstruction(f"{instruction.target:#x} is too far from {address:#x} for a jump")
        return bytes([0x0f, 0x80 | instruction.opcode & 15]) + struct.pack("<i", distance)
    at = instruction.relative_at
    if at is None:
        return instruction.code
    distance = struct.unpack_from("<i", instruction.code, at)[0] + instruction.address - address
    if not _fits(distance):
        raise UnknownInstruction(f"{instruction.code.hex(' ')} reaches too far to be moved to {address:#x}")
    return instruction.code[:at] + struct.pack("<i", distance) + instruction.code[at + 4:]
