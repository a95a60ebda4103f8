"""Marks: what each block says of itself, in programs that keep a ledger of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from karst_command import BUILD, KARST, TESTS, Target
from karst_cores import resize, segments
from karst_preload import ALLOCATORS, CALLS, LIBRARY, SITED, VERSIONS, run, running
from karst_programs import Program, core_of, started

LEAF_BYTES = 16 << 20  # KARST_MAP_LEAF


def ledger(program: Program) -> dict[str, tuple[int, int]]:
    lines = [line.split() for line in program.lines if line.startswith("site ")]
    return {words[1]: (int(words[2]), int(words[3])) for words in lines if int(words[2])}


def sites(target: Target) -> dict[str, tuple[int, int]]:
    """Blocks and bytes by the innermost function, of the program's own."""
    answer = target.json("sites", "--all")
    found: dict[str, tuple[int, int]] = {}
    for site in answer["sites"]:
        assert site["damaged"] == 0, site
        name = site["stack"][0]["text"].split("+")[0]
        if name.startswith("by_"):
            blocks, size = found.get(name, (0, 0))
            found[name] = (blocks + site["blocks"], size + site["bytes"])
    return found


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_sites_are_the_ledger(allocator: str, directory: Path) -> None:
    with running("--mark", program=(SITED, "4", "20000"), directory=directory, allocator=allocator) as program:
        target = Target.process(program.pid)
        assert sites(target) == ledger(program)
        marker = target.json("info")["marker"]
        assert marker["allocator"] == allocator and re.match(VERSIONS[allocator], marker["allocator_version"])
        assert marker["all_marked"] and not marker["recorder"]


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_sites_of_a_core_are_the_ledger(allocator: str, directory: Path) -> None:
    with running("--mark", "--recorder=64K", program=(SITED, "3", "8000"), directory=directory,
                 allocator=allocator) as program:
        core = core_of(program)
    assert sites(Target.core(core)) == ledger(program)
    answer = Target.core(core).json("sites", "--all")
    without = Target.core(core, "--no-symbols").json("sites", "--all")
    key = [(site["stack"][0]["address"], site["blocks"], site["bytes"]) for site in answer["sites"]]
    assert key == [(site["stack"][0]["address"], site["blocks"], site["bytes"]) for site in without["sites"]]


def test_sites_by_stack(directory: Path) -> None:
    with running("--mark", "--stacks=4", program=(SITED, "2", "3000"), directory=directory) as program:
        target = Target.process(program.pid)
        assert sites(target) == ledger(program)
        own = [site["stack"] for site in target.json("sites", "--all")["sites"]
               if site["stack"][0]["text"].startswith("by_")]
        assert own and all(len(stack) == 4 for stack in own)
        assert all("work" in stack[2]["text"] or "work" in stack[1]["text"] for stack in own)


FRAMELESS = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
void *volatile kept[4];
static volatile sig_atomic_t handled;
__attribute__((noinline)) void inner(int i) { kept[i] = malloc(4001 + i); __asm__ volatile(""); }
__attribute__((noinline)) void middle(int i) { inner(i); __asm__ volatile(""); }
__attribute__((noinline)) void on_signal(int number) { middle(number == SIGALRM ? 2 : 1); handled++; }
__attribute__((noinline)) void spin(void) { ualarm(1000, 0); while (handled < 2) { __asm__ volatile(""); } }
__attribute__((noinline)) void outer(void) { middle(0); raise(SIGUSR1); spin(); __asm__ volatile(""); }
int main(void) {
    signal(SIGUSR1, on_signal);
    signal(SIGALRM, on_signal);
    outer();
    printf("ready\n");
    fflush(stdout);
    pause();
}
"""


def test_stacks_without_frame_pointers_and_through_signals(directory: Path) -> None:
    source = directory / "frameless.c"
    source.write_text(FRAMELESS)
    subprocess.run(["gcc", "-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-w", "-o", directory / "frameless",
                    source], check=True)
    with running("--mark", "--stacks=16", program=(directory / "frameless",), directory=directory) as program:
        sites = Target.process(program.pid).json("sites", "--size", "4001:4003")["sites"]
    stacks = {site["largest"]: [frame["text"].split("+")[0] for frame in site["stack"]] for site in sites}
    assert stacks[4001][:4] == ["inner", "middle", "outer", "main"]
    for size, interrupted in ((4002, "outer"), (4003, "spin")):
        assert stacks[size][:3] == ["inner", "middle", "on_signal"]
        assert stacks[size].index(interrupted) < stacks[size].index("main")


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_blocks_from_before_the_marks(allocator: str, directory: Path) -> None:
    """Marks turned on in the middle: what was there is freed and moved without a fault, what comes is exact."""
    with running(program=(SITED, "4", "20000", "late"), directory=directory, allocator=allocator) as program:
        target = Target.process(program.pid)
        assert sites(target) == ledger(program)
        assert not target.json("info")["marker"]["all_marked"]


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_what_freed_blocks_leave_is_no_mark(allocator: str, directory: Path) -> None:
    """Entries of the map stay where blocks were, and what is read behind them may look like a footer."""
    with running("--mark", program=(CALLS, "leftovers"), directory=directory, allocator=allocator) as program:
        target = Target.process(program.pid)
        answer = target.json("sites", "--all")
        assert answer["lost"] == 0 and not [site for site in answer["sites"] if site["damaged"]]
        assert {site["largest"] for site in answer["sites"] if site["stack"][0]["text"].startswith("make+")} == {1000}
        assert target.json("check")["findings"] == []


def test_marker_is_found_without_the_library_file(directory: Path) -> None:
    """Neither a name nor a symbol leads to it: the library is a copy that is gone."""
    for name in ("karst", "libkarst-preload.so"):
        shutil.copy(BUILD / name, directory / name)
    (directory / "libkarst-preload.so").rename(directory / "libkarst-preload.so.real")
    shutil.copy(directory / "libkarst-preload.so.real", directory / "libkarst-preload.so")
    command = [directory / "karst", "run", "--mark", "--", SITED, "2", "2000"]
    with started(command, directory) as program:
        (directory / "libkarst-preload.so").unlink()
        target = Target.process(program.pid, "--no-symbols")
        assert target.json("info")["marker"]["marks"]
        expected = ledger(program)
        answer = target.json("sites", "--all")
        assert {(blocks, size) for blocks, size in expected.values()} <= {
            (site["blocks"], site["bytes"]) for site in answer["sites"]}
        core = core_of(program)
    assert Target.core(core, "--no-symbols").json("info")["marker"]["marks"]


def test_blocks_and_block_say_what_was_asked_for(directory: Path) -> None:
    with running("--mark", program=(CALLS, "hand", "1", "2000"), directory=directory) as program:
        target = Target.process(program.pid)
        live = [block for block in target.json("blocks", "--state", "live", "--limit", "1000")["blocks"]
                if block["site"] and block["site"].startswith("hand+")]
        assert 28 <= len(live) <= 32 and all(24 <= block["requested"] <= 55 <= 64 for block in live)
        assert len({block["sequence"] for block in live}) == len(live)
        facts = {fact["name"]: fact["text"] for fact in target.json("block", live[0]["address"])["facts"]}
        assert facts["asked for"] == f"{live[0]['requested']} bytes"
        assert facts["allocated"].startswith("by malloc at hand+")


def test_allocator_that_is_linked_in(directory: Path) -> None:
    """As a library the program is linked with; and in the program itself, where its own calls are not seen, which is said."""
    subprocess.run(["gcc", "-O1", "-w", "-D_GNU_SOURCE", "-pthread", "-o", directory / "linked",
                    Path(__file__).parents[1] / "programs" / "calls.c", "-ljemalloc"], check=True)
    with running("--mark", program=(directory / "linked", "hand", "2", "2000"), directory=directory) as program:
        target = Target.process(program.pid)
        marker = target.json("info")["marker"]
        assert marker["allocator"] == "jemalloc" and "libjemalloc" in marker["allocator_path"]
        assert any(site["stack"][0]["text"].startswith("hand+") for site in target.json("sites")["sites"])
    with running("--mark", program=(TESTS / "ledger-jemalloc",), directory=directory) as program:
        target = Target.process(program.pid)
        assert "in the program itself, whose own calls do not pass the library" in target.run("info").stdout


PLUGIN = """
#include <cstdlib>
#include <new>
struct alignas(64) Wide { char bytes[640]; };
extern "C" void *keep(int i) {
    delete[] new char[50 + i];
    delete new Wide;
    return i % 2 ? static_cast<void *>(new char[3001]) : std::malloc(3002);
}
"""
HOST = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static const char *path;
static void *load(void *unused) {
    for (int i = 0; i < 30; i++) {
        void *plugin = dlopen(path, RTLD_NOW);
        void *(*keep)(int) = (void *(*)(int))dlsym(plugin, "keep");
        if (!keep(i)) abort();
        dlclose(plugin);
    }
    return unused;
}
int main(int argc, char **argv) {
    pthread_t one;
    path = argv[1];
    if (argc > 2) {
        argv[2] = NULL;
        if (vfork() == 0) execv(argv[0], argv); /* the child is a program of its own */
        int status;
        wait(&status);
        if (status) return 1;
        execv(argv[0], argv);
    }
    pthread_create(&one, NULL, load, NULL);
    load(NULL);
    pthread_join(one, NULL);
    if (getenv("STAY")) { printf("ready\n"); fflush(stdout); pause(); }
    return 0;
}
"""


def test_operators_that_come_by_dlopen(directory: Path) -> None:
    """A C program loads a C++ plugin and drops it, again and again in two threads; also after vfork and exec."""
    plugin, host = directory / "plugin.so", directory / "host"
    (directory / "plugin.cc").write_text(PLUGIN)
    (directory / "host.c").write_text(HOST)
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-o", plugin, directory / "plugin.cc"], check=True)
    subprocess.run(["gcc", "-O1", "-w", "-pthread", "-o", host, directory / "host.c"], check=True)
    everything = ["--mark", "--recorder=64K", "--trap", "any 123456789"]
    for options in ([], everything):
        done = run(*options, "--", host, plugin, "again")
        assert (done.returncode, done.stderr) == (0, "")
    with started([KARST, "run", *everything, "--", host, plugin], directory, {"STAY": "1"}) as program:
        found = {(site["function"], site["largest"]): site["blocks"]
                 for site in Target.process(program.pid).json("sites", "--size", "3001:3002")["sites"]}
    assert found == {("new[]", 3001): 30, ("malloc", 3002): 30}


def fact_of(info: Any, name: str) -> dict[str, Any]:
    """A fact that `info` tells of the first allocator."""
    return next(fact for fact in info["allocators"][0]["facts"] if fact["name"] == name)


def poke(pid: int, marker: str, old: int, new: int) -> None:
    """Writes over an address in the marker."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(int(marker, 16))
        place = memory.read(4096).index(old.to_bytes(8, "little"))
        memory.seek(int(marker, 16) + place)
        memory.write(new.to_bytes(8, "little"))


def test_main_arena_by_the_marker(directory: Path) -> None:
    """It is where the engine finds it in a program without the library; and a marker that lies is not believed."""
    def offset(info: Any) -> int:
        libc = next(module for module in info["modules"] if "/libc.so.6" in module["path"])
        return int(fact_of(info, "main_arena")["address"], 16) - int(libc["start"], 16)

    with started([CALLS, "hand", "1", "2000"], directory, {}) as program:
        bare = Target.process(program.pid, "--no-symbols").json("info")
    assert fact_of(bare, "main_arena")["text"] == "found by structure"
    for arguments in (["hand", "1", "2000"], ["hand", "4", "20000"]):
        with running(program=(CALLS, *arguments), directory=directory) as program:
            target = Target.process(program.pid)
            told = target.json("info")
            root = told["marker"]["roots"]["main_arena"]
            assert fact_of(told, "main_arena") == {"name": "main_arena", "address": root, "text": "by the marker"}
            assert offset(told) == offset(bare)
            poke(program.pid, told["marker"]["address"], int(root, 16), int(root, 16) + 16)
            lied = target.json("info")
            assert lied["marker"]["roots"]["main_arena"] != root and offset(lied) == offset(bare)
            assert fact_of(lied, "main_arena")["text"] != "by the marker"


def test_arena_of_jemalloc_by_the_marker(directory: Path) -> None:
    with running(program=(CALLS, "hand", "1", "2000"), directory=directory, allocator="jemalloc") as program:
        target = Target.process(program.pid)
        told = target.json("info")
        root = told["marker"]["roots"]["arena 0 nactive"]
        assert "the marker says the same" in fact_of(told, "arenas")["text"]
        poke(program.pid, told["marker"]["address"], int(root, 16), 4096)
        assert "elsewhere" in fact_of(target.json("info"), "arenas")["text"]


def test_lists_of_blocks_say_what_was_asked_for(directory: Path) -> None:
    """Each live block of a list against its page, as text and as lines; and nothing of it where there are no marks."""
    with running("--mark", program=(CALLS, "hand", "1", "2000"), directory=directory) as program:
        target = Target.process(program.pid)
        lines = [json.loads(line) for line in target.run("blocks", "--all", "--json").stdout.splitlines()]
        table = target.run("blocks", "--all", "--bytes").stdout.splitlines()
        rows = {row.split()[0]: row for row in table[1:-1]}
        assert table[0].split()[-2:] == ["asked", "site"] and len(rows) == len(lines)
        assert lines == target.json("blocks", "--limit", "100000")["blocks"]
        asked = [block for block in lines if block["requested"] is not None]
        assert len(asked) >= 30 and all(block["state"] == "live" for block in asked)
        for block in asked:
            room = max(block["requested"] + 7 & ~7, 16) + 32  # glibc adds up to 8 of its own, and 16 that are no chunk
            assert room <= block["usable"] <= room + 24 and block["sequence"]
            assert re.search(rf" {block['requested']:,}  {re.escape(block['site'])}$", rows[block["address"]])
        for block in asked[:3]:
            facts = {fact["name"]: fact["text"] for fact in target.json("block", block["address"])["facts"]}
            assert facts["asked for"] == f"{block['requested']} bytes" and f" at {block['site']}, " in facts["allocated"]
        for block in lines:
            if block["requested"] is None:
                assert block["site"] is None and block["sequence"] is None
    with running(program=(CALLS, "hand", "1", "2000"), directory=directory) as program:
        target = Target.process(program.pid)
        assert "site" not in target.run("blocks").stdout.splitlines()[0]
        assert not {"requested", "site"} & set(json.loads(target.run("blocks", "--all", "--json").stdout.splitlines()[0]))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_check_finds_what_was_written_beyond_the_end(allocator: str, directory: Path) -> None:
    """By marks alone where karst can't walk the allocator, which is said."""
    source = directory / "beyond.c"
    source.write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
                      "int main(void) { char *volatile a = malloc(41); a[41] = 1; printf(\"block %p\\nready\\n\", (void *)a);"
                      " fflush(stdout); pause(); }\n")
    subprocess.run(["gcc", "-O0", "-g", "-w", "-o", directory / "beyond", source], check=True)
    with running("--mark", program=(directory / "beyond",), directory=directory, allocator=allocator) as program:
        answer = Target.process(program.pid).json("check", good=(1,))
        only_marks = (answer["reservation"] or "").startswith("No heap that can be walked")
        assert only_marks == (allocator not in ("glibc", "jemalloc")) and answer["blocks_checked"] > 0
        found = [finding for finding in answer["findings"] if finding["code"] == "overflow"]
        block = next(line.split()[1] for line in program.lines if line.startswith("block"))
        assert [finding["address"] for finding in found] == [block] and "main+" in found[0]["text"]
        assert found[0]["severity"] == "corrupt" and found[0]["size"] == 41


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_marks_that_were_written_over_are_told(allocator: str, directory: Path) -> None:
    with running("--mark", program=(CALLS, "overrun"), directory=directory, allocator=allocator) as program:
        target = Target.process(program.pid)
        found = [finding for finding in target.json("check", good=(1,))["findings"] if finding["code"] == "overflow"]
        assert sorted(finding["size"] for finding in found) == [24, 3000]
        assert all("nothing is left of its mark" in finding["text"] for finding in found)
        assert all("78 78 78" in json.dumps(finding) for finding in found)
        assert target.json("sites", "--all")["lost"] == 2
        assert "2 more blocks lost their marks" in target.run("sites").stdout


@pytest.mark.parametrize("allocator", ["glibc", "jemalloc"])
def test_marks_at_each_instruction(allocator: str) -> None:
    """Stopped behind each instruction that changed the heap, the library's own among them: no mark is called damaged, and
    what the program holds is there."""
    libraries = f"LD_PRELOAD={LIBRARY} {ALLOCATORS[allocator]}"
    done = subprocess.run([TESTS / "unit/test_each_instruction", "/usr/bin/env", libraries, "KARST_MARK=1", TESTS / "stepped",
                           "small"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_map_that_ends_in_the_middle_of_a_word(directory: Path) -> None:
    """Where nothing was ever written, in a damaged core: read to its end, and no further."""
    with running("--mark", program=(SITED, "1", "2000"), directory=directory) as program:
        core = core_of(program)
    whole = Target.core(core).json("sites", "--all")["sites"]
    leaves = [segment for segment in segments(core) if 0 <= segment.saved - LEAF_BYTES <= 4096]
    assert leaves
    for leaf in leaves:
        resize(core, leaf, LEAF_BYTES - 8192 + 4)
    found = Target.core(core).json("sites", "--all")["sites"]
    assert 0 < sum(site["blocks"] for site in found) <= sum(site["blocks"] for site in whole)
