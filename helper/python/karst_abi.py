"""What libkarst-preload.so leaves in a process, in Python: helper/include/karst-abi.h says what it means."""

from __future__ import annotations

import ctypes
import enum

VERSION = 3
CONTROL_MAGIC = 0x314b524d5453524b
WHY_MAGIC = 0x31595748544b524b
NO_TRAP = 0xffffffff
TRAPS = 16

# enum karst_function, in its order.
FUNCTIONS = ("malloc", "calloc", "realloc", "reallocarray", "memalign", "posix_memalign", "aligned_alloc", "valloc",
             "pvalloc", "new", "new[]", "free", "delete", "delete[]")

# What a trap may be written with besides, as in helper/preload/trap_spec.c.
GROUPS = ("any", "alloc", "frees", "operators")
TRAP_WORDS = ("growth", "before", "faults", "double-free", "foreign", "interior", "overflow")
TRAP_KEYS = ("action=", "address=", "caller=", "count=", "event=", "freed=", "returned=", "size=", "skip=", "thread=")

GATE_CHANGED, GATE_RECORD, GATE_MARK = 2, 16, 32
SITE_STACK = 1  # enum karst_site_kind


class TrapState(enum.IntEnum):
    EMPTY = 0
    ARMED = 1
    DISABLED = 2
    SPENT = 3


class Condition(enum.IntFlag):
    SIZE = 1
    SIZES = 2
    THREAD = 4
    CALLER = 8
    EVENT = 16
    RETURNED = 32
    FREED = 64
    GROWTH = 128
    FAULT = 256


_U32, _U64, _I32 = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32


class Trap(ctypes.Structure):
    """struct karst_trap"""

    _fields_ = [
        ("state", _U32), ("number", _U32), ("functions", _U32), ("conditions", _U32), ("action", _U32),
        ("before", _U32), ("size_low", _U64), ("size_high", _U64), ("sizes", _U64 * 8), ("size_count", _U32),
        ("thread", _I32), ("caller_low", _U64), ("caller_high", _U64), ("address_low", _U64),
        ("address_high", _U64), ("event", _U64), ("skip", _U64), ("count", _U64), ("hits", _U64), ("fired", _U64),
        ("faults", _U32), ("reserved", _U32), ("caller", ctypes.c_char * 64), ("text", ctypes.c_char * 96)]


class Why(ctypes.Structure):
    """struct karst_why"""

    _fields_ = [
        ("magic", _U64), ("size_of", _U32), ("trap", _U32), ("function", _U32), ("fault", _U32), ("before", _U32),
        ("thread", _I32), ("size", _U64), ("address", _U64), ("old_address", _U64), ("alignment", _U64),
        ("event", _U64), ("caller", _U64), ("stack", _U64), ("hits", _U64), ("grown", _U64), ("block", _U64),
        ("block_size", _U64), ("allocated_at", _U64), ("freed_at", _U64), ("allocated_by", _I32),
        ("freed_by", _I32)]


class Control(ctypes.Structure):
    """The beginning of struct karst_control; what is behind it is found by its offsets."""

    _fields_ = [
        ("magic", _U64), ("version", _U32), ("size", _U32), ("self", _U64), ("pid", _I32), ("page_size", _U32),
        ("gates_offset", _U32), ("gate_count", _U32), ("traps_offset", _U32), ("trap_count", _U32),
        ("trap_bytes", _U32), ("why_bytes", _U32), ("library_start", _U64), ("library_end", _U64),
        ("trap_stop", _U64), ("trap_stop_end", _U64), ("wanted", _U32), ("action", _U32), ("count_events", _U32),
        ("stack_depth", _U32), ("recorder_bytes", _U64), ("generation", _U64), ("events", _U64),
        ("map", _U64), ("canary", _U64), ("marked_from", _U64), ("rings", _U64), ("sites", _U64),
        ("sites_bytes", _U64), ("sites_used", _U64), ("site_kind", _U32), ("site_drops", _U32),
        ("begin_stacks", _U64)]
