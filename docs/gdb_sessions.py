"""The sessions in GDB that docs/trap.md and docs/inject.md show, under the marks <!-- gdb: NAME -->.

Run by `make docs`; a test runs it again and compares. A session is a program and what is typed at GDB's prompt."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
from generate import ENVIRONMENT, PID, PYTHON_ALONE, write_if_other  # noqa: E402

PAGES = ("trap.md", "inject.md")
_DRIVER = """
import gdb, json
said = []
for command in json.load(open("commands.json")):
    try:
        text = gdb.execute(command, False, True)
    except gdb.error as error:
        text = str(error) + "\\n"
    said.append(text)
json.dump(said, open("said.json", "w"))
"""


class Session(NamedTuple):
    attached: Optional[list[str]]  # a program that runs already; None: GDB starts python3
    commands: list[str]


_MANIFEST = [*PYTHON_ALONE, "manifest.py", "--wait"]
SESSIONS = {
    "attached": Session(_MANIFEST, [
        "karst trap add realloc 6157529", "!touch go", "continue", "bt 4", "karst py-stack", "karst trap list",
        "karst block $_", "karst trap remove", "detach"]),
    "refused": Session(_MANIFEST, [
        "karst trap add growth", "karst trap add realloc 10x", "break *((char *) realloc + 4)",
        "karst trap add realloc 6157529"]),
    "from the start": Session(None, [
        "karst run --trap 'realloc 6157529 skip=1' -- -IS manifest.py", "bt 4", "print $_karst_trap_size",
        "karst trap disable", "karst trap add growth count=3", "karst trap list"]),
    "inject": Session(_MANIFEST, [
        "karst inject --recorder", "karst trap add realloc 6157529", "!touch go", "continue",
        "karst history --last 3", "karst eject", "detach"]),
}


def _gdb(session: Session, folder: Path) -> list[str]:
    shutil.copy(ROOT / "tests" / "programs" / "manifest.py", folder / "manifest.py")
    (folder / "commands.json").write_text(json.dumps([re.sub("^!", "shell ", text) for text in session.commands]))
    (folder / "driver.py").write_text(_DRIVER)
    words = ["gdb", "-nx", "-q", "-batch", "-iex", "set confirm off", "-iex", "set debuginfod enabled off",
             "-ex", f"source {ROOT / 'gdb' / 'karst.py'}"]
    program = None
    if session.attached is None:
        words.append("/usr/bin/python3")
    else:
        program = subprocess.Popen(session.attached, cwd=folder, stdout=subprocess.PIPE, text=True,
                                   env=ENVIRONMENT)
        assert program.stdout is not None
        while program.stdout.readline().strip() not in ("ready", ""):
            pass
        words += ["-p", str(program.pid)]
    try:
        subprocess.run([*words, "-ex", "source driver.py"], cwd=folder, check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=100, env=ENVIRONMENT)
    finally:
        if program is not None:
            program.kill()
            program.wait()
    said = json.loads((folder / "said.json").read_text())
    pids = [str(program.pid)] if program is not None else re.findall(r", thread (\d+)", "".join(said))[:1]
    return [_shown(text, pids, folder) for text in said]


def _shown(text: str, pids: list[str], folder: Path) -> str:
    for pid in pids:
        text = re.sub(rf"\b{pid}\b", str(PID), text)
    text = text.replace(str(folder) + "/", "/home/you/").replace(str(ROOT) + "/", "/opt/karst/")
    lines = [line for line in text.splitlines() if not re.match(r"\[Thread debugging|Using host libthread_db|warning:", line)]
    return "\n".join(lines).strip("\n")


def text_of(session: Session) -> str:
    with tempfile.TemporaryDirectory(prefix="karst-") as folder:
        said = _gdb(session, Path(folder))
    lines = ["$ gdb -q python3" if session.attached is None else f"$ gdb -q -p {PID}"]
    for command, text in zip(session.commands, said):
        lines.append(f"(gdb) {command}")
        lines += [text] if text else []
    return "\n".join(lines)


def page_with_sessions(text: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        return f"<!-- gdb: {match[1]} -->\n```text\n{text_of(SESSIONS[match[1]])}\n```\n"

    return re.sub(r"<!-- gdb: ([^>]*) -->\n```text\n.*?```\n", replaced, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where the pages are written")
    options = parser.parse_args()
    for name in PAGES:
        text = page_with_sessions((ROOT / "docs" / name).read_text(encoding="utf-8"))
        write_if_other(options.folder / name, text)


if __name__ == "__main__":
    main()
