"""Stops in stacks of every kind and says what traceback says of them: a line of JSON for each thread, "stack NAME
[[file, line, function], ...]", the newest frame first. Runs on Python 3.9 and later."""

import functools
import json
import os
import sys
import threading
import time
import traceback

SEVERAL_LINES = 3
stopped = []


def stop():
    # One line: what traceback notes and where the thread then waits has to be the same place.
    (stopped.append((threading.current_thread().name, traceback.extract_stack())), time.sleep(1000))


def plain(number, text="a text", *rest, **names):
    below = [number, text]
    del rest
    stop(
    )
    return below, names


def generator():
    for value in range(SEVERAL_LINES):
        yield value
        if value == 1:
            yield (stop(),
                   value)


def recursive(depth):
    return recursive(
        depth - 1) if depth else stop()


def callback():
    return sorted([3, 2, 1],
                  key=lambda value:
                  stop())


def through_c():
    return list(map(functools.partial(lambda first, second: stop(), 1), [2, 3]))


class Descriptor:
    @property
    def value(self):
        try:
            raise ValueError("caught")
        except ValueError as error:
            return stop(), error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def method(self):
        captured = {"key": 1}

        def inner():
            with self as held:
                return held.value, captured
        return inner()


def in_class():
    class Body:
        attribute = stop()
    return Body


def in_code():
    exec(compile("\n\n\nfor one in [1]:\n    stop()\n", "<made up>", "exec"), {"stop": stop})


def comprehension():
    return [[stop() for inner in [outer]]
            for outer in "ab"]


async def coroutine():
    async def within():
        return stop()
    return await within()


def drive():
    coroutine().send(None)


def unused_lines():
    if len(stopped) > 10 ** 9:
        for _ in range(10):
            print("never")












































































































































    value = 1
    while True:
        value += 1
        stop()


KINDS = {
    "plain": lambda: plain(7, more=1), "generator": lambda: list(generator()), "recursive": lambda: recursive(300),
    "callback": callback, "through_c": through_c, "descriptor": lambda: Descriptor().method(),
    "in_class": in_class, "in_code": in_code, "comprehension": comprehension, "coroutine": drive,
    "unused_lines": unused_lines,
}


def main():
    sys.setrecursionlimit(5000)
    threads = [threading.Thread(target=kind, name=name, daemon=True) for name, kind in KINDS.items()]
    for thread in threads:
        thread.start()
    while len(stopped) < len(threads):
        time.sleep(0.01)
    time.sleep(0.2)  # up to their sleep()
    tids = {thread.name: thread.native_id for thread in threads}
    for name, stack in stopped:
        frames = [[frame.filename, frame.lineno, frame.name] for frame in reversed(stack)]
        print("stack", json.dumps({"name": name, "tid": tids[name], "frames": frames}), flush=True)
    say("main", traceback.extract_stack()), print("ready", os.getpid(), flush=True), time.sleep(1000)


def say(word, stack):
    print(word, json.dumps([[frame.filename, frame.lineno, frame.name] for frame in reversed(stack)]), flush=True)


main()
