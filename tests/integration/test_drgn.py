"""karst in drgn on userspace programs: the same answers as the command line's, and the helpers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from karst_command import TESTS, Target
from karst_drgn import DRGN, SCRIPT, DrgnTarget, drgn, run_script
from karst_heaps import HEAPS, start
from karst_ledger import read_ledger
from karst_libcs import SYSTEM
from karst_programs import core_of, started
from karst_prompt import at_prompt

pytestmark = pytest.mark.skipif(shutil.which(DRGN) is None, reason="needs drgn")

NAMES = [name for name, heap in HEAPS.items() if heap.since < 42]
VERBS = [["summary"], ["arenas"], ["bins", "--all"], ["check"], ["holes"], ["pins"], ["sizes", "--exact"], ["maps", "--list"],
         ["info"], ["map", "--width", "60"]]


QUESTIONS = [["blocks", "--all", "--json"], ["summary", "--json"], ["holes", "--json"], ["check", "--json"]]


@pytest.mark.parametrize("name", NAMES)
def test_core_answers_are_the_command_lines(name: str, directory: Path) -> None:
    """All in one drgn, which takes longer to start than to answer."""
    with start(HEAPS[name], SYSTEM, directory) as program:
        core = core_of(program)
    text = run_script(["-c", core], f"""
from karst_drgn import commands
for words in {QUESTIONS}:
    status = commands.run(lambda: prog, words)
    print("=== status", status)
""", directory)
    answers = re.split(r"^=== status (\d)\n", text, flags=re.MULTILINE)
    for words, answer, status in zip(QUESTIONS, answers[::2], answers[1::2]):
        there = Target("-c", core).run(*words)
        assert (int(status), answer) == (there.returncode, there.stdout), words


@pytest.mark.parametrize("name", ["default", "forked", "static", "second-libc"])
def test_process_answers_are_the_command_lines(name: str, directory: Path) -> None:
    with start(HEAPS[name], SYSTEM, directory) as program:
        here, there = DrgnTarget(["-p", str(program.pid)]), Target("-p", str(program.pid))
        assert list(here.blocks()) == list(there.blocks())
        assert here.json("summary") == there.json("summary")
        program.wait_state("S")  # goes on


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    with start(HEAPS["default"], SYSTEM, folder) as program:
        return core_of(program)


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_text_is_the_command_lines(words: list[str], core: Path) -> None:
    here, there = DrgnTarget(["-c", core]).run(*words), Target("-c", core).run(*words)
    assert (here.returncode, here.stdout) == (there.returncode, there.stdout)


def test_options_may_stand_before_the_verb(core: Path) -> None:
    address = hex(next(Target("-c", core).blocks("--state", "live")).address)
    there = Target("-c", core).json("block", address)
    for words in (["--json", "block", address], ["block", "--json", address], ["block", address, "--exe",
                                                                                str(TESTS / "ledger"), "--json"]):
        assert json.loads(drgn("-c", core, SCRIPT, *words).stdout) == there


def test_debug_information_is_found_by_drgn_too(core: Path) -> None:
    """Symbols that only drgn has loaded: lent to the engine, which is told to look at no files."""
    text = run_script(["-c", core], """
from karst_drgn import symbols
lent = symbols.Lent(prog)
print(lent.member(None, "malloc_state", "top") is not None, lent.symbol(None, "main_arena") is not None,
      lent.symbol(None, "tcache"), lent.member(None, "no_such", "x"), lent.symbol(None, "no_such"))
""", core.parent)
    assert text.split() == ["True", "True", "None", "None", "None"]


def test_helpers(core: Path) -> None:
    text = run_script(["-c", core], """
from karst_drgn import (find_heap_block, for_each_heap_arena, for_each_heap_block, heap_check, heap_chunk, heap_holes,
                        heap_json, heap_pins, heap_total, visit_heap_blocks)
for block in for_each_heap_block(prog):
    print("block", hex(block.address), block.usable, block.state, block.arena or "-")
live = list(for_each_heap_block(prog, "live"))
assert all(block.state == "live" for block in live)
assert find_heap_block(prog, live[5].address + 3) == live[5] and find_heap_block(prog, 4096) is None
chunk = heap_chunk(prog, live[5])
assert chunk.mchunk_size.value_() & ~7 == live[5].size, chunk
arenas = list(for_each_heap_arena(prog))
assert [arena.name for arena in arenas] == ["main", "thread 1", "thread 2", "thread 3"]
assert arenas[1].object.system_mem.value_() == arenas[1].system and arenas[0].object.next.value_() in [a.address for a in arenas]
count = 0
def count_them(blocks):
    global count
    count += len(blocks)
visit_heap_blocks(prog, count_them)
assert count == sum(1 for _ in for_each_heap_block(prog))
assert heap_check(prog) == [] and heap_total(prog)["live"]["blocks"] == len(live)
assert heap_holes(prog, 3) == heap_holes(prog)[:3] and len(heap_holes(prog)) == heap_json(prog, "holes")["holes"]
assert all(pin.joined > 0 for pin in heap_pins(prog))
try:
    list(for_each_heap_block(prog, "dead"))
except ValueError as error:
    print(error)
""", core.parent)
    found = [line.split() for line in text.splitlines() if line.startswith("block ")]
    expected = [["block", hex(block.address), str(block.usable), block.state] for block in Target("-c", core).blocks()]
    assert [words[:4] for words in found] == expected
    assert "no state 'dead'; there are: live, free" in text


def test_helpers_on_a_process(directory: Path) -> None:
    with start(HEAPS["default"], SYSTEM, directory) as program:
        text = run_script(["-p", str(program.pid)], """
from karst_drgn import for_each_heap_block
for block in for_each_heap_block(prog, "live"):
    print(hex(block.address), block.usable)
""", directory)
        program.wait_state("S")
    found = {int(address, 16): int(usable) for address, usable in (line.split() for line in text.splitlines())}
    assert found == {address: entry.usable for address, entry in read_ledger(directory).items()}


def test_rss_of_a_process(directory: Path) -> None:
    with start(HEAPS["default"], SYSTEM, directory) as program:
        answer = DrgnTarget(["-p", str(program.pid)]).json("rss")
        rollup = Path(f"/proc/{program.pid}/smaps_rollup").read_text()
    assert answer["rss_bytes"] == int(re.search(r"^Rss: +(\d+)", rollup, re.MULTILINE)[1]) * 1024


def test_refused_in_one_line(core: Path, directory: Path) -> None:
    target = DrgnTarget(["-c", core])
    assert "only a kernel" in target.one_line("residency")
    assert "only a kernel" in target.one_line("gcore", "x")
    assert "a live process" in target.one_line("rss")
    assert "--pid is for kernels" in target.one_line("--pid", "1", "summary")
    assert "did you mean" in target.one_line("sumary")
    assert "needs a value" in target.one_line("summary", "--exe")
    assert "is in no heap" in target.one_line("block", "16")
    assert "takes auto, always or never" in target.one_line("summary", "--color=blue")
    empty = drgn(SCRIPT, "summary") if os.environ.get("KARST_DRGN") else None
    assert empty is None or empty.returncode != 0


def test_a_full_disk_is_told(core: Path) -> None:
    for words in (["summary"], ["blocks", "--all"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([DRGN, "-q", "-c", core, SCRIPT, *words], stdout=full, stderr=subprocess.PIPE, text=True,
                                  timeout=120)
        assert done.returncode == 2, done.stderr
        assert done.stderr.splitlines()[-1] == "karst: can't write the answer: No space left on device", done.stderr


def test_a_reader_who_had_enough(core: Path) -> None:
    done = subprocess.run(["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "bash", DRGN, "-q", "-c", core, SCRIPT, "blocks",
                           "--all"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1) and "karst" not in done.stderr, done.stderr


def test_help_names_all_verbs(core: Path) -> None:
    text = drgn("-c", core, SCRIPT, "--help").stdout
    for verb in ("summary", "holes", "check", "rss", "residency", "gcore"):
        assert re.search(rf"^  {verb} ", text, re.MULTILINE), text
    assert drgn("-c", core, SCRIPT, "holes", "--help").stdout.startswith("karst holes")
    assert drgn("-c", core, SCRIPT, "gcore", "--help").stdout.startswith("karst gcore")


def test_check_has_its_own_status(directory: Path) -> None:
    with started([TESTS / "catalogue", "double-free-tcache-twice", directory], directory) as program:
        here, there = DrgnTarget(["-p", str(program.pid)]).run("check"), Target("-p", str(program.pid)).run("check")
    assert here.returncode == 1 and "double-free" in here.stdout and here.stdout == there.stdout


def test_several_cores_in_one_drgn(core: Path, directory: Path) -> None:
    """drgn before 0.0.30 does not say which file a program is of: asked, not guessed."""
    with start(HEAPS["one-thread"], SYSTEM, directory) as program:
        other = core_of(program)
    text = run_script(["-c", core], f"""
import drgn
from karst_drgn import KarstError, heap_total, set_core
other = drgn.Program()
other.set_core_dump({str(other)!r})
try:
    first = heap_total(other)
except KarstError as error:
    print(error)
    set_core(other, {str(other)!r})
    set_core(prog, {str(core)!r})
    first = heap_total(other)
print(first["live"]["blocks"], heap_total(prog)["live"]["blocks"])
""", directory)
    blocks = [Target("-c", path).json("summary")["total"]["live"]["blocks"] for path in (other, core)]
    assert text.splitlines()[-1].split() == list(map(str, blocks))
    assert "several cores are open" in text or len(text.splitlines()) == 1


def test_plugin(core: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`%karst VERB`, and run_command(), where drgn has commands; that a plugin can be loaded, where it has plugins."""
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    monkeypatch.setenv("DRGN_PLUGINS", "karst=karst_drgn.plugin")
    script = directory / "commands.py"
    script.write_text("""
import sys
try:
    from drgn.commands import run_command
except ImportError:
    print("none", "karst_drgn.plugin" in sys.modules)
    sys.exit()
print(run_command(prog, "karst summary"))
run_command(prog, "karst summary | head -n 1")
print(run_command(prog, "karst frob"))
""")
    done = drgn("-c", core, script)
    assert done.returncode == 0 and "failed to load" not in done.stderr, done.stderr
    if done.stdout.startswith("none"):
        has_plugins = not done.stdout.startswith("none False")
        version = re.search(r"0\.0\.(\d+)", drgn("--version").stdout)
        assert version and has_plugins == (int(version[1]) >= 31)
        return
    text = Target("-c", core).run("summary").stdout
    assert done.stdout == f"{text}None\n{text.splitlines()[0]}\n2\n"
    assert done.stderr == "karst: no verb 'frob'; the verbs are listed by --help\n"


def test_typed_at_the_prompt(core: Path, directory: Path) -> None:
    """`%karst` by hand, as a user has it: at drgn's own prompt, on a terminal; piped, redirected, and with a mistake."""
    version = re.search(r"drgn (\d+)\.(\d+)\.", drgn("--version").stdout)
    assert version
    if (int(version[1]), int(version[2])) < (0, 1):
        pytest.skip("drgn has commands from 0.1.0 on")
    environment = {"PYTHONPATH": str(SCRIPT.parent), "DRGN_PLUGINS": "karst=karst_drgn.plugin", "DEBUGINFOD_URLS": ""}
    there = Target("-c", core)
    summary = there.run("summary").stdout.splitlines()
    blocks = sum(1 for _ in there.blocks())
    with at_prompt([DRGN, "-q", "-c", core], directory, environment) as prompt:
        prompt.wait_for(r"^>>> ")
        prompt.type("%karst summary")
        shown = prompt.wait_for(re.escape(summary[-1]))
        missing = [line for line in summary if line.strip() not in shown]
        assert not missing, shown
        prompt.type("%karst blocks --all --json | wc -l")
        prompt.wait_for(rf"^{blocks}$")
        prompt.type("%karst holes --json > holes.json")
        prompt.type("%karst frob")
        prompt.wait_for("^karst: no verb 'frob'; the verbs are listed by --help$")
        prompt.type("print('goes', 'on')")
        assert "Traceback" not in prompt.wait_for("^goes on$")
    assert json.loads((directory / "holes.json").read_text()) == there.json("holes")
