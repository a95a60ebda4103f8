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


def test_block_says_which_object(directory: Path) -> None:
    """`karst block` of an address inside of a large str: its type, its length, and who has it."""
    python = system_python()
    with python.running("objects.py", directory) as program:
        (ids,) = told(program, "ids")
        command = f"karst block {ids['big_text'] + 100000:#x}"
        core = gcore(program.pid, directory)
        for target in ([python.path, core], ["-p", str(program.pid)]):
            text = gdb(target, [command], directory).of(command).good()
            assert re.search(rf"^  object +{ids['big_text']:#x} str, 1,200,000 characters; 1 reference$", text, re.MULTILINE), text
            assert re.search(r"^  referred by 0x[0-9a-f]+ local big_text of main, line \d+$", text, re.MULTILINE), text
