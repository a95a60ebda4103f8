"""Text as the engine writes it: sizes, tables, styles, for what Python tells itself."""

from __future__ import annotations

import locale
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, Union

from karst_engine import ErrorCode, KarstError, Style

_SEQUENCES = {Style.TITLE: "1", Style.ADDRESS: "34", Style.SYMBOL: "36", Style.FILE: "32", Style.GOOD: "32",
              Style.WARNING: "33", Style.BAD: "1;31", Style.DIM: "2"}

Cell = Union[str, tuple[Style, str]]


def has_colour(setting: str) -> bool:
    if setting != "auto":
        return setting == "always"
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")


def width() -> int:
    """Columns; 0: not a terminal, unlimited."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def unicode() -> bool:
    name = sys.stdout.encoding or locale.getpreferredencoding(False)
    return name.upper().replace("-", "") == "UTF8"


def clean(text: str) -> str:
    """Without what a terminal could take for commands: names in a hostile target may hold it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def size_text(size: int, exact: bool = False) -> str:
    """"8.5 MB"; 1 KB is 1,024 bytes."""
    if exact:
        return f"{size:,}"
    sign, amount = ("-" if size < 0 else ""), float(abs(size))
    if amount < 1024:
        return f"{sign}{int(amount)} B"
    for unit in ("KB", "MB", "GB", "TB"):
        amount /= 1024
        if amount < 1024 or unit == "TB":
            break
    return f"{sign}{amount:.1f} {unit}"


class Writer:
    """Standard output; once nobody reads any more, nothing is written and `closed` says so."""

    def __init__(self, colour: str, exact: bool) -> None:
        self._colour = has_colour(colour)
        self.exact = exact
        self.closed = False

    def write(self, style: Style, text: str) -> bool:
        sequence = _SEQUENCES.get(style) if self._colour else None
        self._try(lambda: sys.stdout.write(f"\x1b[{sequence}m{text}\x1b[0m" if sequence else text))
        return not self.closed

    def flush(self) -> None:
        self._try(sys.stdout.flush)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BrokenPipeError:
            self._close()
        except OSError as error:
            self._close()
            raise KarstError(ErrorCode.SYSTEM, f"can't write the answer: {error.strerror}") from None

    def _close(self) -> None:
        """What is left would be written, and fail, when the file is closed."""
        self.closed = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

    def line(self, text: str = "", style: Style = Style.PLAIN) -> None:
        self.write(style, text)
        self.write(Style.PLAIN, "\n")

    def size(self, size: int) -> str:
        return size_text(size, self.exact)

    def signed(self, size: int) -> str:
        """A difference: "+0 B", "-48.0 KB"."""
        return self.size(size) if size < 0 else f"+{self.size(size)}"

    def table(self, titles: Sequence[str], rows: Sequence[Sequence[Cell]], left: Sequence[int] = (0,)) -> None:
        """Columns as wide as what is in them; those numbered in left are flush left, all others right."""
        texts = [[cell if isinstance(cell, str) else cell[1] for cell in row] for row in (titles, *rows)]
        widths = [max(len(row[column]) for row in texts) for column in range(len(titles))]
        for number, row in enumerate(texts):
            for column, text in enumerate(row):
                last = column == len(row) - 1
                padded = text.ljust(0 if last else widths[column]) if column in left else text.rjust(widths[column])
                cell: Any = rows[number - 1][column] if number else (Style.TITLE, "")
                self.write(Style.PLAIN if isinstance(cell, str) else cell[0], padded)
                self.write(Style.PLAIN, "\n" if last else "  ")
