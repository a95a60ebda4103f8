"""A parent with a large cache, and workers forked from it: "idle" leaves the cache alone, "reader" only looks at each
record, "clearer" drops its copy of the cache, as one does to save memory. Prints "child NAME PID" for each, then
"ready". Python 3.9 and later."""

import gc

import forking


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


def main():
    gc.disable()
    cache = [Record(number) for number in range(100000)]
    gc.freeze()
    for work in (idle, reader, clearer):
        forking.fork(work.__name__, lambda: work(cache))
    forking.wait()


main()
