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
from collections import deque

FILES = 100_000
REVISIONS = 100
CACHED = 32
INDEX_ENTRIES, INDEX_BYTES = 40, 400


def line(path: int, revision: int) -> str:
    digest = hashlib.sha1(b"%d %d" % (path, revision)).hexdigest()
    return f"src/module{path % 997:03}/part{path:06}/source.c\0{digest}\n"


def patch(data: str, revision: int) -> str:
    """The next manifest: twenty lines replaced, forty added at the end."""
    new = ""
    start = 0
    for number in range(1, 21):
        end = data.find("\n", number * len(data) // 21) + 1
        new += data[start:end]
        new += line(number * FILES // 21, revision)
        start = data.find("\n", end) + 1
    new += data[start:]
    for added in range(40):
        new += line(FILES + 40 * revision + added, revision)
    return new


def index(text: str) -> list[str]:
    step = len(text) // INDEX_ENTRIES
    return [text[at:at + INDEX_BYTES] for at in range(0, step * INDEX_ENTRIES, step)]


def main() -> None:
    text = "".join(line(path, 0) for path in range(FILES))
    cache: deque[str] = deque(maxlen=CACHED)
    indexes: list[list[str]] = []
    for revision in range(1, REVISIONS + 1):
        text = patch(text, revision)
        cache.append(text)
        indexes.append(index(text))
    while len(cache) > 1:
        cache.popleft()
    held = len(text) + sum(len(entry) for entries in indexes for entry in entries)
    print(f"{os.getpid()}: revision {REVISIONS}, {len(text):,} bytes in the newest manifest, "
          f"{held:,} bytes of text held in all", flush=True)
    if "--once" not in sys.argv:
        time.sleep(600)


if __name__ == "__main__":
    main()
