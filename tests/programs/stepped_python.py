"""Calls pymalloc in each way that changes its pools differently, and traps before each call, so that who traces it can go on
by single instructions and look.

    stepped_python.py main|thread

main, thread: who does the work. stepped.h says how it talks to its watcher. For x86-64."""

import ctypes
import mmap
import sys
import threading
import time

SHARED_FD = 100  # STEPPED_SHARED_FD
HELD_MAX = 512  # STEPPED_HELD_MAX
DOMAIN_OBJECT = 2  # PYMEM_DOMAIN_OBJ
STEP = 16
DRESS = 24  # what the debug hooks add
SIZE = 464  # of a class that the interpreter itself hardly uses


class Block(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("usable", ctypes.c_uint64)]


class Stepped(ctypes.Structure):
    _fields_ = [("go", ctypes.c_uint32), ("inside", ctypes.c_uint32), ("operation", ctypes.c_char * 64),
                ("held_count", ctypes.c_uint32), ("held", Block * HELD_MAX)]


class Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]


# call(function, context, first, second, &inside) calls the function between inside = 1, a trap, and inside = 0.
CALL = bytes.fromhex(
    "4150"  # push r8
    "41c70001000000"  # mov dword ptr [r8], 1
    "cc"  # int3
    "4889f8"  # mov rax, rdi
    "4889f7"  # mov rdi, rsi
    "4889d6"  # mov rsi, rdx
    "4889ca"  # mov rdx, rcx
    "ffd0"  # call rax
    "4158"  # pop r8
    "41c70000000000"  # mov dword ptr [r8], 0
    "c3"  # ret
)

shared = Stepped.from_buffer(mmap.mmap(SHARED_FD, ctypes.sizeof(Stepped), mmap.MAP_SHARED))
inside = ctypes.addressof(shared) + Stepped.inside.offset
text = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
text.write(CALL)
call = ctypes.PYFUNCTYPE(*[ctypes.c_void_p] * 6)(ctypes.addressof(ctypes.c_char.from_buffer(text)))
pymalloc = Allocator()
ctypes.pythonapi.PyMem_GetAllocator(ctypes.c_int(DOMAIN_OBJECT), ctypes.byref(pymalloc))
quick_malloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(pymalloc.malloc)
quick_free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(pymalloc.free)
held: "dict[int, int]" = {}


def hold(address: int, size: int) -> int:
    dress = DRESS if pymalloc.ctx else 0
    held[address] = (size + dress + STEP - 1) // STEP * STEP - dress
    return address


def begin(operation: str) -> None:
    shared.operation = operation.encode()
    shared.held_count = len(held)
    for index, (address, usable) in enumerate(held.items()):
        shared.held[index] = Block(address, usable)


def malloc(size: int, operation: str) -> int:
    begin(operation)
    return hold(call(pymalloc.malloc, pymalloc.ctx, size, None, inside), size)


def free(address: int, operation: str) -> None:
    del held[address]
    begin(operation)
    call(pymalloc.free, pymalloc.ctx, address, None, inside)


def realloc(address: int, size: int, operation: str) -> int:
    del held[address]
    begin(operation)
    return hold(call(pymalloc.realloc, pymalloc.ctx, address, size, inside), size)


def quick(count: int) -> "list[int]":
    return [hold(quick_malloc(pymalloc.ctx, SIZE), SIZE) for _ in range(count)]


def in_one_pool() -> None:
    first = malloc(SIZE, "malloc from a new pool, or one of few blocks")
    second = malloc(SIZE, "malloc, cut anew")
    third = malloc(SIZE, "malloc, cut anew")
    free(second, "free")
    free(first, "free, a list of two")
    first = malloc(SIZE - 7, "malloc from a list of two")
    second = malloc(SIZE, "malloc of the last one in the list")
    second = realloc(second, SIZE - 200, "realloc that moves to a smaller class")
    free(first, "free")
    free(second, "free")
    free(third, "free")


def in_full_pools() -> None:
    row = quick(20) + [malloc(SIZE, "malloc until a pool is full, and of the next") for _ in range(18)] + quick(40)
    for address in row[4:7]:
        free(address, "free in a full pool, and after it")
    del row[4:7]
    last = list({address & -mmap.PAGESIZE * 4: address for address in row}.values())
    for address in row:
        if address not in last:
            del held[address]
            quick_free(pymalloc.ctx, address)
    for address in last:
        free(address, "free of a pool's last one")


def work() -> None:
    in_one_pool()
    if not pymalloc.ctx:  # the debug hooks fill blocks, which takes many steps
        in_full_pools()


while not shared.go:
    time.sleep(0.001)
if sys.argv[1] == "thread":
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
else:
    work()
