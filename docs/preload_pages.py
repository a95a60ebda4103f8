"""The sessions in docs/trap.md, docs/markers.md and docs/recorder.md: commands that are run as a reader would run them,
in a directory with the programs of docs/demo. A mark <!-- shell: NAME --> says which."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

DEMO = Path(__file__).resolve().parent / "demo"
PAGES = ("trap.md", "markers.md", "recorder.md")
MARK = re.compile(r"<!-- shell: ([\w-]+) -->\n```text\n.*?^```$", re.DOTALL | re.MULTILINE)

READY = "echo $! > pid; until grep -q ready out; do sleep 0.01; done"
# Lines that begin with "-" are run and not shown, with "=" shown and not run.
SHELLS: dict[str, list[str]] = {
    "trap-size": ["karst run --trap 'realloc 8M: count=1' -- python3 -IS manifest.py"],
    "trap-growth": ["karst run --trap 'realloc growth skip=8 count=2' -- python3 -IS manifest.py"],
    "trap-event": ["karst run --trap 'any event=2000' -- python3 -IS manifest.py",
                   "karst run --trap 'any event=2000' -- python3 -IS manifest.py"],
    "trap-core": ["karst run --trap 'realloc 8M: count=1 action=core' -- python3 -IS manifest.py",
                  "karst -c core info | tail -n 8"],
    "trap-wrong": ["karst run --trap 'free 100' -- ./users"],
    "faults": ["karst run --mark ./users twice", "karst run --mark ./users long", "karst run --mark ./users middle"],
    "marks": [f"-karst run --mark ./mailbox > out 2>&1 & {READY}", "karst -p $(cat pid) sites",
              "karst -p $(cat pid) block $(awk '/label/ {print $2}' out) --dump 16",
              "karst -p $(cat pid) info | tail -n 7", "-kill $(cat pid)"],
    "stacks": [f"-karst run --mark --stacks=3 ./mailbox > out 2>&1 & {READY}",
               "karst -p $(cat pid) sites --stacks --limit 1", "-kill $(cat pid)"],
    "killed": [f"-karst run --recorder=1M --recorder-dir rings ./mailbox > out 2>&1 & {READY}",
               "=karst run --recorder=1M --recorder-dir rings ./mailbox", "kill -9 $(cat pid)", "-sleep 0.2",
               "karst history --files rings --last 4",
               "karst history --files rings $(awk '/label/ {print $2}' out)"],
    "live": [f"-karst run --recorder ./mailbox > out 2>&1 & {READY}",
             "karst -p $(cat pid) history --size 2000 --last 3", "-kill $(cat pid)"],
}


def run(name: str, build: Path) -> str:
    """The session of that name, as a terminal shows it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        for path in (DEMO / "manifest.py", build / "docs" / "mailbox"):
            shutil.copy(path, folder)
        subprocess.run(["gcc", "-g", "-O1", "-w", "-o", folder / "users", DEMO / "users.c"], check=True)
        environment = {"LC_ALL": "C.UTF-8", "PATH": f"{build}:/usr/bin:/bin"}
        shown = []
        for line in SHELLS[name]:
            if line.startswith("="):
                shown.append(f"$ {line[1:]}\n")
                continue
            done = subprocess.run(["bash", "-c", f"ulimit -c unlimited; {line.removeprefix('-')}"], cwd=folder,
                                  env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  timeout=60, stdin=subprocess.DEVNULL)
            if not line.startswith("-"):
                shown.append(f"$ {line}\n{done.stdout}")
        return "\n".join(text.rstrip() + "\n" for text in shown).replace(os.fspath(folder), "/home/you")


def with_shells(text: str, build: Path) -> str:
    return MARK.sub(lambda found: f"<!-- shell: {found[1]} -->\n```text\n{run(found[1], build).rstrip()}\n```", text)
