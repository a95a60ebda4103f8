"""Workers that are forked from a parent, do one thing each, and wait for the parent's end. Not a program of its own.
Python 3.9 and later."""

import os
import signal
import time


def fork(name, work):
    """Prints "child NAME PID" once the child is done with its work, and all that it writes to from then on is its own."""
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        work()
        told = False
        while os.getppid() == parent:
            time.sleep(0.1)
            told = told or os.write(write, b"x")
        os._exit(0)
    os.read(read, 1)
    print("child", name, child, flush=True)


def wait():
    print("ready", os.getpid(), flush=True)
    signal.pause()
