"""Fills arenas with objects and frees all but a few, which pin theirs: prints, as JSON, "pins" (addresses). Runs on
Python 3.9 and later."""

import json
import os
import time


class Text(str):
    __slots__ = ()


def main():
    things = [Text("this one is %d" % number) for number in range(100000)]
    pins = things[20000::20000]
    del things
    print("pins", json.dumps([id(pin) for pin in pins]), flush=True)
    print("ready", os.getpid(), flush=True)
    time.sleep(1000)
    del pins


main()
