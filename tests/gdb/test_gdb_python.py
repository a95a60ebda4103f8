"""Python stacks in GDB: the verb, and the same between the C frames of the interpreter."""

from __future__ import annotations

import re
from pathlib import Path

from gdb_runner import gdb
from karst_programs import gcore
from karst_pythons import system_python, told


def test_native(directory: Path) -> None:
    python = system_python()
    with python.running("stacks.py", directory) as program:
        stacks = {stack["name"]: stack for stack in told(program, "stack")}
        core = gcore(program.pid, directory)
        everywhere = "thread apply all karst py-stack --native --locals"
        commands = [everywhere]
        for number in range(1, len(stacks) + 2):
            commands += [f"thread {number}", f"karst py-stack --native --limit={number}", "karst py-stack --all --json"]
        for target in ([python.path, core], ["-p", str(program.pid)]):
            answers = gdb(target, commands, directory)
            (runtime,) = answers.of("karst py-stack --all --json").json()["runtimes"]
            threads = {thread["tid"]: thread for thread in runtime["threads"]}
            met = 0
            for number in range(1, len(stacks) + 2):
                text = answers.of(f"karst py-stack --native --limit={number}").good()
                shown = re.findall(r"^  py #\d+ +(\S.*?) at (\S.*):(\d+)$", text, re.MULTILINE)
                names = [[file, int(line), function.rsplit(".", 1)[-1]] for function, file, line in shown]
                (tid,) = [tid for tid, thread in threads.items()
                          if [[frame["file"], frame["line"], frame["function"].rsplit(".", 1)[-1]]
                              for frame in thread["frames"]] == names]
                assert "does not see" not in text
                entries = sum(frame["from_c"] for frame in threads[tid]["frames"])
                assert len(re.findall(r"^  C  #\d+ +_PyEval_EvalFrameDefault", text, re.MULTILINE)) == entries
                # What C code called is followed by C frames, then by the Python frame that called that.
                groups = re.findall(r"((?:^  py .*\n)+)", text, re.MULTILINE)
                assert len(groups) == entries
                met += 1
            assert met == len(threads) == len(stacks) + 1
            assert "text: str = 'a text'" in answers.of(everywhere).good()
