"""Has pymalloc get its new arenas from malloc, so that they lie in blocks of glibc. Prints "kept ADDRESS", of a string
in one of them. Python 3.9 and later."""

import ctypes
import os
import time

LIBC = ctypes.CDLL(None)


class ArenaAllocator(ctypes.Structure):
    _fields_ = [("context", ctypes.c_void_p), ("allocate", ctypes.c_void_p), ("free", ctypes.c_void_p)]


def main():
    # It calls allocate(context, size): with a context of 1, calloc() will do; and free(context, address, size), by which
    # abs() gives nothing back.
    functions = [ctypes.cast(function, ctypes.c_void_p).value for function in (LIBC.calloc, LIBC.abs)]
    ctypes.pythonapi.PyObject_SetArenaAllocator(ctypes.byref(ArenaAllocator(1, *functions)))
    kept = [str(number) for number in range(200000)]
    print("kept", hex(id(kept[150000])), flush=True)
    print("ready", os.getpid(), flush=True)
    time.sleep(1000)


main()
