"""The ctypes binding, held against the command line and against a target lent by Python."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest

from karst_command import BUILD, ROOT, TESTS
from karst_command import Target as Command
from karst_programs import Program, core_of, started

sys.path.insert(0, str(ROOT / "helper" / "python"))
import karst_abi  # noqa: E402
import karst_engine as engine  # noqa: E402

HOLES = """
kept = [bytes(size) for size in range(600, 6000)]
del kept[::2]
print("ready", flush=True)
import time
time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    engine.load(str(BUILD / "libkarst.so"))


@pytest.fixture
def program(directory: Path) -> Iterator[Program]:
    with started(["/usr/bin/python3", "-c", HOLES], directory, {"PYTHONMALLOC": "malloc"}) as running:
        yield running


class Lent(engine.Target):
    """A process as a debugger could lend it: stopped, read through /proc."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.reads = 0
        self.fail: Optional[BaseException] = None
        self._memory = open(f"/proc/{pid}/mem", "rb", buffering=0)

    def close(self) -> None:
        self._memory.close()

    def read(self, address: int, size: int) -> object:
        self.reads += 1
        if self.fail is not None and self.reads > 5:
            raise self.fail
        try:
            data = os.pread(self._memory.fileno(), size, address)
        except (OSError, OverflowError):
            return b""
        return memoryview(bytearray(data)) if self.reads % 2 else data

    def mappings(self) -> list[engine.Mapping]:
        found = []
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            words = line.split(None, 5)
            start, end = (int(word, 16) for word in words[0].split("-"))
            permissions = sum(
                bit for letter, bit in (("r", 1), ("w", 2), ("x", 4), ("s", 8)) if letter in words[1]
            )
            name = words[5] if len(words) > 5 else None
            found.append(engine.Mapping(start, end, permissions, name, int(words[2], 16), int(words[4])))
        return found

    def threads(self) -> list[engine.Thread]:
        return [engine.Thread(int(path.name), name="lent") for path in Path(f"/proc/{self.pid}/task").iterdir()]


def test_same_words_as_the_command_line(program: Program) -> None:
    questions = [["summary"], ["arenas"], ["bins"], ["sizes"], ["blocks", "-n", "5"]]
    core = core_of(program)
    command = Command.core(core)
    with engine.Session.open_core(str(core)) as session:
        for words in questions:
            assert session.run_json(words) == command.json(*words), words


def test_blocks_one_by_one(program: Program) -> None:
    states: dict[engine.State, int] = {}
    addresses = []

    def visit(blocks: ctypes.Array[engine.Block]) -> None:
        for block in blocks:
            states[engine.State(block.state)] = states.get(engine.State(block.state), 0) + 1
            addresses.append(block.start)

    with engine.Session.open_process(program.pid) as session:
        session.for_each_block(visit)
        assert addresses == sorted(addresses)
        summary = session.run_json(["summary"])["total"]
        for state in (engine.State.LIVE, engine.State.FREE, engine.State.CACHED, engine.State.TOP):
            assert states.get(state, 0) == summary[state.name.lower()]["blocks"], state
        largest = session.run_json(["blocks", "--state", "free", "--sort", "size", "-n", "1"])["blocks"][0]
        block = session.find_block(int(largest["address"], 16) + 7)
        assert block.address == int(largest["address"], 16)
        assert (block.size, engine.State(block.state)) == (largest["size"], engine.State.FREE)
        assert session.arena_name(block) == largest["arena"]
        assert session.bin_name(block) == largest["bin"]
        assert session.allocator_name(block) == "glibc"


# Heaps of many kinds of chunk: one of a foreign sbrk, one with damage in it that the walk steps over.
FOUND_IN = {
    "holes": ["/usr/bin/python3", "-c", HOLES],
    "foreign-sbrk": [str(TESTS / "ledger"), "--foreign-sbrk", "--large", "."],
    "damaged": [str(TESTS / "catalogue"), "overflow-in-many-places", "."],
}


@pytest.mark.parametrize("name", FOUND_IN)
def test_find_block_agrees_with_the_walk(name: str, directory: Path) -> None:
    """In any order; what a look remembers of the way there is no reason for another answer."""
    with started(FOUND_IN[name], directory, {"PYTHONMALLOC": "malloc"}) as running:
        core = core_of(running)
    words = ("start", "size", "address", "usable", "state", "arena", "bin", "flags")
    walked: list[tuple[int, ...]] = []

    def visit(blocks: ctypes.Array[engine.Block]) -> None:
        walked.extend(tuple(getattr(block, word) for word in words) for block in blocks)

    chance = random.Random(5)
    with engine.Session.open_core(str(core)) as session:
        session.for_each_block(visit)
        for index in (chance.randrange(len(walked)) for _ in range(1500)):
            start, size = walked[index][:2]
            found = session.find_block(start + chance.randrange(size))
            assert tuple(getattr(found, word) for word in words) == walked[index]
        for index in (chance.randrange(1, len(walked) - 1) for _ in range(300)):
            answer = session.run_json(["block", hex(walked[index][0])])
            for key, other in (("before", walked[index - 1]), ("after", walked[index + 1])):
                told = answer[key]
                touches = other[0] + other[1] == walked[index][0] or walked[index][0] + walked[index][1] == other[0]
                if told is not None:
                    assert int(told["address"], 16) == other[2], (key, answer)
                else:  # another extent, which may begin where this one ends
                    extent = answer["extent"]
                    assert not touches or not int(extent["start"], 16) <= other[0] < int(extent["end"], 16)


def test_walk_ends_when_told(program: Program) -> None:
    calls = []
    with engine.Session.open_process(program.pid) as session:
        session.for_each_block(lambda blocks: calls.append(len(blocks)) or False)
        assert len(calls) == 1


class Vast(Lent):
    """Claims a mapping beside the others that takes years to look through a piece at a time, and has nothing of it."""

    START, SIZE = 1 << 57, 1 << 60
    asked = 0

    def read(self, address: int, size: int) -> object:
        if address < self.START:
            return super().read(address, size)
        self.asked += 1
        if self.asked > 300_000:
            raise RuntimeError("reads on and on")
        return b""

    def mappings(self) -> list[engine.Mapping]:
        return [*super().mappings(), engine.Mapping(self.START, self.START + self.SIZE, 3, None, 0, 0)]


def test_lent_mapping_that_is_vast(program: Program) -> None:
    target = Vast(program.pid)
    with engine.Session.open_callbacks(target) as session:
        assert session.run_json(["summary"])["total"]["system_bytes"] > 0
    target.close()
    assert target.asked > 0


def test_lent_memory_gives_the_same_heap(program: Program) -> None:
    target = Lent(program.pid)
    with engine.Session.open_process(program.pid) as session:
        own = session.run_json(["summary"])
    with engine.Session.open_callbacks(target) as session:
        lent = session.run_json(["summary"])
    target.close()
    for key in ("system_bytes", "free", "top", "mapped"):
        assert lent["total"][key] == own["total"][key], key
    # Without its thread pointer a thread's cache is out of sight: what is in it counts as live.
    assert (
        lent["total"]["live"]["bytes"] + lent["total"]["cached"]["bytes"]
        == own["total"]["live"]["bytes"] + own["total"]["cached"]["bytes"]
    )
    assert target.reads > 0


@pytest.mark.parametrize("exception", [ZeroDivisionError("in a callback"), KeyboardInterrupt()])
def test_exceptions_pass_through_c(program: Program, exception: BaseException) -> None:
    target = Lent(program.pid)
    target.fail = exception
    with pytest.raises(type(exception)):
        with engine.Session.open_callbacks(target) as session:
            session.run_text(["summary"])
    target.close()


def test_exception_in_write_and_visit_leaves_the_session_whole(program: Program) -> None:
    def refuse(*_arguments: object) -> None:
        raise LookupError("enough")

    with engine.Session.open_process(program.pid) as session:
        with pytest.raises(LookupError):
            session.run(["blocks"], refuse)
        with pytest.raises(LookupError):
            session.for_each_block(refuse)
        assert session.run_text(["check"])[0].status == 0


def test_a_callback_cannot_ask_the_session(program: Program) -> None:
    with engine.Session.open_process(program.pid) as session:
        with pytest.raises(RuntimeError, match="at work"):
            session.run(["summary"], lambda style, text: session.close())


def test_errors_have_codes(program: Program) -> None:
    with engine.Session.open_process(program.pid) as session:
        for words, code in (
            (["sumary"], engine.ErrorCode.USAGE),
            (["block", "nowhere"], engine.ErrorCode.USAGE),
            (["block", "0x10"], engine.ErrorCode.NOT_FOUND),
        ):
            with pytest.raises(engine.KarstError) as raised:
                session.run_text(words)
            assert raised.value.code == code
    with pytest.raises(engine.KarstError):
        engine.Session.open_process(2**22 + 1)
    with pytest.raises(engine.KarstError):
        engine.Session.open_core("/nowhere/core")
    with pytest.raises(ValueError, match="closed"):
        session.run_text(["summary"])


def test_verbs_and_help() -> None:
    verbs = {verb["name"]: verb for verb in engine.verbs()}
    assert {"summary", "blocks", "block", "check"} <= set(verbs)
    assert verbs["block"]["arguments"][0]["kind"] == "address"
    assert any(option["name"] == "json" for option in verbs["summary"]["options"])
    assert "ADDRESS" in engine.help_text("block")


def in_fresh_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    prelude = f"import sys; sys.path.insert(0, {str(ROOT / 'helper' / 'python')!r})\nimport karst_engine as engine\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_missing_engine_is_one_line() -> None:
    done = in_fresh_python(
        "try: engine.load('/nowhere/libkarst.so')\nexcept engine.EngineMissing as error: print(error)"
    )
    assert "make" in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


def test_other_version_is_refused() -> None:
    done = in_fresh_python(
        f"import karst_library; karst_library.API_VERSION = 99\ntry: engine.load({str(BUILD / 'libkarst.so')!r})\n"
        "except engine.EngineMissing as error: print(error)"
    )
    assert "99 is needed" in done.stdout, done.stderr


def test_words_of_traps_are_known() -> None:
    """Each that completion offers is one that the engine takes."""
    for word in (*karst_abi.FUNCTIONS, *karst_abi.GROUPS, *karst_abi.TRAP_WORDS, *karst_abi.TRAP_KEYS):
        text = {"action=": "action=log", "caller=": "caller=libc.so.6"}.get(word, word + "5" if word.endswith("=") else word)
        need = "any " if word in ("before", "freed=", "returned=", "address=") else ""
        engine.read_trap(need + text, ctypes.sizeof(karst_abi.Trap))
