"""`make demo`: karst on real trouble. First a Python program whose heap is mostly holes, alive in GDB, then its
core without symbols; then the core of a C program that freed a block twice.

Everything that is shown is the answer of a command that stands above it. The files go to build/demo.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)


def let_debuggers_in() -> None:
    """Where the system lets only parents trace (kernel.yama.ptrace_scope), GDB may still attach."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)


class Demo:
    def __init__(self, build: Path) -> None:
        self.build = build
        self.output = build / "demo"
        self.output.mkdir(parents=True, exist_ok=True)
        self.sections: dict[str, str] = {}  # what was shown, for the documents
        self.complaints = ""  # of the command that ran last
        self.bold = "\x1b[1m" if sys.stdout.isatty() else ""
        self.plain = "\x1b[m" if sys.stdout.isatty() else ""

    def say(self, text: str) -> None:
        print(f"\n{self.bold}{textwrap.fill(' '.join(text.split()), 100)}{self.plain}\n", flush=True)

    def show(self, name: str, prompt: str, text: str) -> str:
        text = text.replace(f"{ROOT}/", "")
        self.sections[name] = f"{prompt}\n{text.rstrip()}\n"
        print(f"{self.bold}{prompt}{self.plain}\n{text.rstrip()}\n", flush=True)
        return text

    def run(self, words: Sequence[str | Path], good: Sequence[int] = (0,)) -> str:
        done = subprocess.run([str(word) for word in words], cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
                              env={**os.environ, "LC_ALL": "C.UTF-8", "DEBUGINFOD_URLS": ""})
        self.complaints = done.stderr
        if done.returncode not in good:
            raise SystemExit(f"{shlex.join(map(str, words))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
        return done.stdout

    def gdb(self, target: Sequence[str | Path], commands: Sequence[str]) -> dict[str, str]:
        """What each command said. A mark that GDB echoes stands between them."""
        mark = "@@karst-demo@@"
        plugin = ROOT / "gdb" / "karst.py"
        words: list[str | Path] = ["gdb", "-nx", "-batch", "-ex", f"source {plugin}", *target]
        for command in commands:
            words += ["-ex", f"echo {mark}\\n", "-ex", command]
        answers = dict(zip(commands, self.run(words).split(mark + "\n")[1:]))
        for command in commands:
            if command.startswith("karst") and not answers.get(command, "").strip():
                raise SystemExit(f"GDB does not answer `{command}`:\n{self.complaints}")
        return answers

    def karst(self, name: str, *words: str | Path, good: Sequence[int] = (0,)) -> str:
        shown = shlex.join(["karst", *(str(word).replace(f"{ROOT}/", "") for word in words)])
        return self.show(name, f"$ {shown}", self.run([self.build / "karst", *words], good))


def start_patcher(demo: Demo) -> tuple[subprocess.Popen[str], str]:
    patcher = subprocess.Popen([sys.executable, str(HERE / "patcher.py")], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONMALLOC": "malloc"}, preexec_fn=let_debuggers_in)
    assert patcher.stdout is not None
    return patcher, patcher.stdout.readline().strip()


def next_length(line: str) -> int:
    match = re.search(r"will have ([0-9,]+) bytes", line)
    if match is None:
        raise SystemExit(f"the demo's program said {line!r}")
    return int(match.group(1).replace(",", ""))


def python_program(demo: Demo) -> None:
    demo.say("1. A Python program patches a growing manifest, new += data[a:b], one revision after the other."
             " It runs with PYTHONMALLOC=malloc: glibc serves it all.")
    patcher, line = start_patcher(demo)
    try:
        print(f"$ PYTHONMALLOC=malloc python3 docs/demo/patcher.py &\n{line}")
        core = demo.output / "patcher.core"
        core.unlink(missing_ok=True)
        demo.say("It holds ten megabytes. What is in the rest of its memory? GDB, attached to it while it runs:")
        shown = ["karst summary", "karst map --rows 16", f"karst holes --fit {next_length(line)}", "karst pins"]
        answers = demo.gdb(["-p", str(patcher.pid)], [*shown, f"generate-core-file {core}", "detach"])
    finally:
        patcher.kill()
        patcher.wait()
    for command in shown:
        demo.show(f"live {command.split()[1]}", f"(gdb) {command}", answers[command])
    demo.say("2. The same from its core, without a single symbol, by the command line. And a picture:")
    demo.karst("core summary", "-c", core, "--no-symbols", "summary")
    demo.karst("core map", "-c", core, "--no-symbols", "map", "--output", demo.output / "heap.png")


def double_free(demo: Demo) -> None:
    demo.say("3. A C program freed a buffer twice, nobody noticed, and it gave up later, elsewhere."
             " What is left is a core:")
    program, core = demo.output / "double_free", demo.output / "double_free.core"
    core.unlink(missing_ok=True)
    demo.run(["gcc", "-g", "-O0", "-Wno-use-after-free", "-o", program, HERE / "double_free.c"])
    demo.gdb([program], ["run", f"generate-core-file {core}", "kill"])
    demo.karst("check", "-c", core, "-e", program, "check", good=(1,))
    findings = json.loads(demo.run([demo.build / "karst", "-c", core, "-e", program, "check", "--json"], (1,)))
    address = next(row["address"] for row in findings["findings"] if row["code"] == "double-free")
    demo.say("Which buffer is it, and who still points to it? GDB knows the types:")
    block, refs = f"karst block {address} --type buffer", f"karst refs {address}"
    answers = demo.gdb([program, core], [block, refs])
    for command in (block, refs):
        demo.show(f"double free {command.split()[1]}", f"(gdb) {command}", answers[command])


def main() -> None:
    parser = argparse.ArgumentParser(description="karst on real trouble")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where `make` put karst")
    demo = Demo(parser.parse_args().build.resolve())
    began = time.monotonic()
    python_program(demo)
    double_free(demo)
    (demo.output / "sections.json").write_text(json.dumps(demo.sections, indent=1))
    demo.say(f"That took {time.monotonic() - began:.0f} s. The story behind it: docs/tour.md; the picture: "
             f"{os.path.relpath(demo.output / 'heap.png')}.")


if __name__ == "__main__":
    main()
