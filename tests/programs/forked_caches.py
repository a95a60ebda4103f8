"""A parent with a large cache, and workers forked from it: "idle" leaves the cache alone, "reader" only looks at each
record, "clearer" drops its copy of the cache, as one does to save memory. Prints "child NAME PID" for each, then
"ready". Python 3.9 and later."""

import gc
import os
import signal
import time


class Record:
    __slots__ = ("number", "text")

    def __init__(self, number):
        self.number = number
        self.text = "record %d" % number


def idle(cache):
    pass


def reader(cache):
    for record in cache:
        held = [record, record.number, record.text]
        del held


def clearer(cache):
    cache.clear()
    gc.collect()


def fork(work, cache):
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        work(cache)
        told = False  # once all that it writes to from now on is its own
        while os.getppid() == parent:
            time.sleep(0.1)
            told = told or os.write(write, b"x")
        os._exit(0)
    os.read(read, 1)
    print("child", work.__name__, child, flush=True)


def main():
    gc.disable()
    cache = [Record(number) for number in range(100000)]
    gc.freeze()
    for work in (idle, reader, clearer):
        fork(work, cache)
    print("ready", os.getpid(), flush=True)
    signal.pause()


main()
