"""A service that puts manifests together, piece by piece: which line asks for the one large realloc?

With --wait it waits for a file `go` before it begins. It prints `wanted SIZE`, the bytes that the call to be found asks
for, and in the end `met N`, how often that was asked for, as Python's own sizes tell."""

from __future__ import annotations

import os
import sys
import time

PIECES = 2100
FOUND_AT = 1500


def header(pieces: int) -> str:
    text = ""
    for index in range(pieces):
        text += "%08d;" % index
    return text


def bodies(data: str, pieces: int, wanted: int) -> tuple[int, int]:
    new, met = "", 0
    for index in range(pieces):
        a, b = index * 7 % 512, index * 7 % 512 + 4099 + index % 13
        new += data[a:b]
        met += sys.getsizeof(new) == wanted
    return sys.getsizeof(new), met


def journal(data: bytes, pieces: int) -> bytearray:
    kept = bytearray()
    for index in range(pieces):
        kept += data[: index % 2048]
    return kept


def main() -> None:
    data = "0123456789abcdef" * 1024
    wanted, _ = bodies(data, FOUND_AT, 0)
    print("wanted", wanted, flush=True)
    print("ready", flush=True)
    while "--wait" in sys.argv and not os.path.exists("go"):
        time.sleep(0.01)
    header(20_000)
    journal(data.encode(), 3000)
    _, met = bodies(data, PIECES, wanted)
    journal(data.encode(), 3000)
    print("met", met, flush=True)


main()
