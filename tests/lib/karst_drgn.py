"""karst in drgn, run and understood. KARST_DRGN: another drgn than the system's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from karst_command import ROOT, SECONDS, Target

DRGN = os.environ.get("KARST_DRGN", "drgn")
SCRIPT = ROOT / "drgn" / "karst.py"


def drgn(*arguments: str | os.PathLike[str], seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DRGN, "-q", *map(os.fspath, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=seconds, env={**os.environ, "DEBUGINFOD_URLS": ""})


class DrgnTarget(Target):
    """As Target, of what drgn opens: `program` are drgn's own options, `options` those of the verbs."""

    def __init__(self, program: Sequence[str | os.PathLike[str]], *options: str | os.PathLike[str]) -> None:
        super().__init__(*options)
        self.program = list(program)

    def run(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return drgn(*self.program, SCRIPT, *self.options, verb, *arguments)

    def one_line(self, *words: str) -> str:
        """What it says instead of an answer: has to be one line, and no traceback."""
        done = drgn(*self.program, SCRIPT, *self.options, *words)
        lines = [line for line in done.stderr.splitlines() if line.startswith("karst: ")]
        assert done.returncode == 2 and len(lines) == 1 and not done.stdout, done
        assert "Traceback" not in done.stderr, done.stderr
        return lines[0]


def run_script(program: Sequence[str | os.PathLike[str]], text: str, folder: Path) -> str:
    """What a script prints that can import karst_drgn."""
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.append({str(SCRIPT.parent)!r})\n{text}")
    done = drgn(*program, script)
    assert done.returncode == 0, done.stderr
    return done.stdout
