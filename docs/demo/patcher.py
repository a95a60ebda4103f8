"""A version-control server in small: it rebuilds a growing manifest, revision after revision.

Each revision is the one before with a few lines changed, put together as `new += data[a:b]`. The newest texts
are cached, with a short index of each; every text is a little longer than any before it. When it gets quiet the
cache is emptied but for the newest text, and the indexes stay: small blocks between large holes. Run it with
PYTHONMALLOC=malloc, so that every object is a block of malloc's. It says what it holds, then waits.
"""

import hashlib
import os
import sys
import time
from array import array
from collections import deque

FILES = 100_000
REVISIONS = 48
HUNKS = 250
ADDED = 200


def line(path: int, revision: int) -> str:
    digest = hashlib.sha1(b"%d %d" % (path, revision)).hexdigest()
    return f"src/module{path % 997:03}/part{path:06}/source.c\0{digest}\n"


def patch(data: str, revision: int) -> str:
    """The next manifest: a line replaced in each hunk, ADDED at the end."""
    new = ""
    start = 0
    for number in range(1, HUNKS + 1):
        end = data.find("\n", number * len(data) // (HUNKS + 1)) + 1
        new += data[start:end]
        new += line(number * FILES // (HUNKS + 1), revision)
        start = data.find("\n", end) + 1
    new += data[start:]
    for added in range(ADDED):
        new += line(FILES + ADDED * revision + added, revision)
    return new


def index(text: str) -> bytes:
    """Where every 20th line begins, as 64-bit numbers."""
    starts = array("Q")
    start = 0
    for number in range(text.count("\n")):
        if number % 20 == 0:
            starts.append(start)
        start = text.find("\n", start) + 1
    return starts.tobytes()


def main() -> None:
    text = ""
    for path in range(FILES):
        text += line(path, 0)
    cache: deque[str] = deque()
    indexes: list[bytes] = []
    for revision in range(1, REVISIONS + 1):
        text = patch(text, revision)
        cache.append(text)
        indexes.append(index(text))
    while len(cache) > 1:
        cache.popleft()
    indexed = sum(map(len, indexes))
    longer = len(text) + ADDED * len(line(FILES, 0))
    print(f"{os.getpid()}: revision {REVISIONS}: {len(text):,} bytes of text and {indexed:,} bytes of indexes are "
          f"held; the next text will have {longer:,} bytes", flush=True)
    if "--once" not in sys.argv:
        time.sleep(600)


if __name__ == "__main__":
    main()
