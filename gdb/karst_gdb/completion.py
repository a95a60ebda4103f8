"""What may come next on a line, where GDB itself does not know."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

import gdb


def among(candidates: Sequence[str], typing: str, word: str | None) -> object:
    """What `complete()` of a command answers: those of candidates that begin with what is being typed. word is GDB's
    part of that: it breaks words at dashes, too, and what it has already stays out of the answer."""
    if word is None:  # GDB asks first only how to break words
        return gdb.COMPLETE_NONE
    kept = len(typing) - len(word)
    return [candidate[kept:] for candidate in candidates if candidate.startswith(typing)]


def last_word(text: str) -> str:
    """What is being typed: "" behind a space."""
    return text.split()[-1] if text and not text[-1].isspace() else ""


def files(typing: str, word: str | None) -> object:
    """GDB's own way of completing files takes the whole line for one."""
    if word is None:
        return gdb.COMPLETE_FILENAME
    start = os.path.expanduser(typing)
    found = [path + "/" if os.path.isdir(path) else path for path in sorted(glob.glob(glob.escape(start) + "*"))]
    return among([typing + path[len(start):] for path in found], typing, word)
