"""A parent with records, which the collector knows, their texts, which it does not, and large texts, which lie in malloc's
heap; and workers forked from it that each do one thing: "idle" nothing, "reader" looks at each text, "collector" collects,
"writer" turns the list around. Prints "child NAME PID" for each, "pages KIND [...]" (the numbers of the pages that hold
headers of tracked objects, texts, large texts, the list's items) and "ready". With the argument "freeze" the parent
calls gc.freeze() first. Python 3.9 and later."""

import ctypes
import gc
import json
import sys

import forking

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
    forking.fork("idle", lambda: idle(cache))
    forking.fork("reader", lambda: reader(texts))
    forking.fork("collector", lambda: collector(cache))
    forking.fork("writer", lambda: writer(cache))
    forking.wait()


main()
