"""A second interpreter in a thread of its own, in sub_function(), with 500 objects of its own class. Python 3.9 and
later."""

import os
import threading
import time

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

SCRIPT = """
import os, time

class Own:
    def __init__(self):
        self.number = 1

def sub_function():
    os.write({write}, b"x")
    time.sleep(1000)

kept = [Own() for _ in range(500)]
sub_function()
"""


def main():
    read, write = os.pipe()
    second = interpreters.create()
    run = getattr(interpreters, "run_string", None) or interpreters.exec
    threading.Thread(target=lambda: run(second, SCRIPT.format(write=write)), daemon=True).start()
    os.read(read, 1)
    time.sleep(0.2)
    print("ready", os.getpid(), flush=True), time.sleep(1000)


main()
