"""A parent with records, which the collector knows, their texts, which it does not, and large texts, which lie in malloc's
heap; and workers forked from it that each do one thing: "idle" nothing, "reader" looks at each text, "collector" collects,
"writer" turns the list around. Prints "child NAME PID" for each, "pages KIND [...]" (the numbers of the pages that hold
headers of tracked objects, texts, large texts, the list's items) and "ready". With the argument "freeze" the parent
calls gc.freeze() first. Python 3.9 and later."""

import ctypes
import gc
import json
import os
import signal
import sys
import time

PAGE = 4096
HEADER = 16  # the collector's, before an object


class Record:
    __slots__ = ("number", "text", "large")

    def __init__(self, number):
        self.number = number
        self.text = "record %d of some length" % number
        self.large = "large %d " % number * 50


def idle(cache):
    pass


def reader(texts):
    for text in texts:
        held = [text]
        del held


def collector(cache):
    gc.collect()


def writer(cache):
    cache.reverse()


def fork(name, work):
    read, write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        work()
        told = False  # once all that it writes to from now on is its own
        while os.getppid() == parent:
            time.sleep(0.1)
            told = told or os.write(write, b"x")
        os._exit(0)
    os.read(read, 1)
    print("child", name, child, flush=True)


def say(kind, addresses):
    print("pages", json.dumps({"kind": kind, "pages": sorted({address // PAGE for address in addresses})}), flush=True)


def main():
    gc.disable()
    cache = [Record(number) for number in range(40000)]
    texts = [record.text for record in cache] + [record.large for record in cache]
    gc.collect()
    if "freeze" in sys.argv:
        gc.freeze()
    items = ctypes.cast(id(cache) + 24, ctypes.POINTER(ctypes.c_size_t))[0]
    say("collector", [id(one) - HEADER for one in gc.get_objects()])
    say("texts", [id(record.text) for record in cache])
    say("large", [id(record.large) for record in cache])
    say("items", range(items, items + 8 * len(cache), PAGE))
    fork("idle", lambda: idle(cache))
    fork("reader", lambda: reader(texts))
    fork("collector", lambda: collector(cache))
    fork("writer", lambda: writer(cache))
    print("ready", os.getpid(), flush=True)
    signal.pause()


main()
