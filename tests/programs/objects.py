"""Makes objects of many types, frees most of them, so that pools and arenas are left with holes, and says what
CPython itself counts: sys._debugmallocstats() to the file "mallocstats" in the current directory, and on its
output, as JSON, "types" (of gc.get_objects(), without what counting makes), "sizes" (of some objects) and "ids".
Runs on Python 3.9 and later. SCALE: how many of each, in thousands."""

import collections
import gc
import json
import os
import sys
import time


class Plain:
    def __init__(self, number):
        self.number = number
        self.name = "name of %d" % number


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self, first, second):
        self.first = first
        self.second = second


class Weakly(dict):
    pass


class Number(int):
    """Like int unknown to the collector."""
    __slots__ = ()


class Text(str):
    __slots__ = ()


def make(count):
    kept = collections.defaultdict(list)
    for number in range(count):
        kept["plain"].append(Plain(number))
        kept["slotted"].append(Slotted(number, str(number)))
        kept["weakly"].append(Weakly(number=number))
        kept["list"].append([number + 1000000, 1.5 * number])
        kept["set"].append({number, "in a set"})
        kept["bytes"].append(b"%d bytes" % number * (number % 40))
        kept["tuple"].append((number, [number]))
        kept["number"].append(Number(number))
        kept["text"].append(Text("text %d" % number))
    return kept


def thin_out(kept):
    for name, things in kept.items():
        for place in range(len(things)):
            if place % 97:
                things[place] = None


def count_types():
    gc.collect()
    objects = gc.get_objects()
    counts = collections.Counter()
    for one in objects:
        kind = type(one)
        module = kind.__module__
        counts[kind.__qualname__ if module == "builtins" else "%s.%s" % (module, kind.__qualname__)] += 1
    del objects, one
    return counts


def say(word, thing):
    print(word, json.dumps(thing), flush=True)


def main():
    scale = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    kept = make(1000 * scale)
    held = make(100)
    thin_out(kept)
    big_text, big_list = "karst " * 200000, list(range(60000))
    big_bytes, big_dict = bytearray(b"x" * 500000), {number: None for number in range(20000)}
    gc.disable()
    counts = count_types()
    freed = (held["slotted"][3],) * 17
    del freed  # what is kept for the next tuple of 17 has its words still
    say("types", counts)
    say("own", {"Number": sum(1 for one in kept["number"] if one is not None) + 100,
                "Text": sum(1 for one in kept["text"] if one is not None) + 100})
    say("ids", {"big_text": id(big_text), "big_list": id(big_list), "big_bytes": id(big_bytes),
                "big_dict": id(big_dict), "plain": id(held["plain"][7]), "kept": id(kept), "held": id(held),
                "name": id(held["plain"][7].name), "slotted": id(held["slotted"][3])})
    say("sizes", {"big_text": sys.getsizeof(big_text), "big_list": sys.getsizeof(big_list),
                  "big_bytes": sys.getsizeof(big_bytes), "big_dict": sys.getsizeof(big_dict)})
    stats = os.open("mallocstats", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(stats, 2)
    ready = b"ready %d\n" % os.getpid()
    os.write(2, b"")
    sys._debugmallocstats()
    os.write(1, ready)
    time.sleep(1000)


main()
