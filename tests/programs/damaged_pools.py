"""Damages pymalloc in one way, KIND, in a size class that nothing else uses, and waits. Prints "block", "pool", "place"
(where the damage is) as addresses. Python 3.9 and later."""

import ctypes
import os
import sys
import time

DEBUG = os.environ.get("PYTHONMALLOC") == "debug"
SIZE = 466 if DEBUG else 490  # of the class of 496
C = ctypes.pythonapi
C.PyObject_Malloc.restype = ctypes.c_void_p
C.PyObject_Malloc.argtypes = [ctypes.c_size_t]
C.PyObject_Free.restype = None
C.PyObject_Free.argtypes = [ctypes.c_void_p]
POOL = 4096 if sys.version_info < (3, 10) else 16384
# struct pool_header
USED, NEXT, PREVIOUS, ARENA_INDEX, CLASS, NEXT_OFFSET = 0, 16, 24, 32, 36, 40


def word(address):
    return ctypes.c_uint64.from_address(address)


def half(address):
    return ctypes.c_uint32.from_address(address)


def damage(kind, block, other, pool, small):
    """The place that was damaged."""
    if kind == "healthy":
        return block
    if kind == "behind":  # the rest only where the debug hooks are on
        ctypes.c_uint8.from_address(block + SIZE).value = 0
        return block
    if kind == "before":
        ctypes.c_uint8.from_address(block - 1).value = 0
        return block
    if kind == "used-after-free":
        C.PyObject_Free(block)
        ctypes.c_uint8.from_address(block + 40).value = 0
        return block
    if kind == "double-free":
        C.PyObject_Free(block)
        C.PyObject_Free(block)
        return block
    if kind in ("written-after-free", "into-the-middle", "cycle", "not-cut"):
        C.PyObject_Free(other)
        C.PyObject_Free(block)
        word(block).value = {"written-after-free": 0x4141414141414141, "into-the-middle": other + 8,
                             "cycle": block, "not-cut": pool + half(pool + NEXT_OFFSET).value}[kind]
        return block
    if kind == "ring":
        word(pool + NEXT).value = pool + 8
        return pool + NEXT
    if kind == "other-ring":  # into the ring of a smaller class, as if freed with another size
        following = word(small + NEXT).value
        word(pool + NEXT).value, word(pool + PREVIOUS).value = following, small
        word(small + NEXT).value = word(following + PREVIOUS).value = pool
        return pool
    offset, value = {"class": (CLASS, 77), "count": (USED, half(pool + USED).value + 3),
                     "arena": (ARENA_INDEX, 5000), "offset": (NEXT_OFFSET, half(pool + NEXT_OFFSET).value + 8)}[kind]
    half(pool + offset).value = value
    return pool + offset


def main():
    damage("healthy", 0, 0, 0, 0)  # its frame stays, up to 3.10, and may take a block of this size
    # Of two blocks in one pool, and three more, so that it stays in use.
    blocks = [C.PyObject_Malloc(SIZE) for _ in range(100)]
    groups = {}
    for block in blocks:
        groups.setdefault(block // POOL, []).append(block)
    chosen = max(groups.values(), key=lambda group: (5 < len(group), group[0]))
    for block in blocks:
        if block not in chosen:
            C.PyObject_Free(block)
    C.PyObject_Free(chosen.pop())
    small = C.PyObject_Malloc(SIZE - 32) // POOL * POOL
    while half(small + USED).value * (SIZE - 26) > POOL - 48 - SIZE:  # a full one is in no ring
        small = C.PyObject_Malloc(SIZE - 32) // POOL * POOL
    pool = chosen[0] // POOL * POOL
    place = damage(sys.argv[1], chosen[2], chosen[3], pool, small)
    print("block", hex(chosen[2]), flush=True)
    print("pool", hex(pool), flush=True)
    print("place", hex(place), flush=True)
    print("ready", os.getpid(), flush=True)
    time.sleep(1000)


main()
