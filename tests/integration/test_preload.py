"""The preload library: traps, marks and the flight recorder, in programs that know what they called."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from karst_command import BUILD, KARST, TESTS, Target, karst
from karst_programs import Program, core_of, kernel_cores_land_here, started

CALLS, SITED = TESTS / "calls", TESTS / "sited"
LIBRARY = BUILD / "libkarst-preload.so"
ALLOCATORS = {"glibc": "", "jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4",
              "mimalloc": "libmimalloc.so.2.0"}
VERSIONS = {"glibc": r"2\.\d+", "jemalloc": r"5\.3\.", "tcmalloc": r"2\.\d+", "mimalloc": r"2\.0\.9"}
LINE = re.compile(r"^karst: trap (?P<trap>\d+): (?P<function>[\w\[\]]+)\((?P<arguments>.*?)\)(?: = (?P<result>\w+))?(?P<rest>.*)$")


def run(*arguments: str | Path, allocator: str = "glibc", seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """`karst run` with these arguments, to the program's end."""
    return karst("run", *arguments, seconds=seconds, environment={"LD_PRELOAD": ALLOCATORS[allocator]})


def hits(done: subprocess.CompletedProcess[str]) -> list[re.Match[str]]:
    """The lines of traps, in the order they were written."""
    lines = [LINE.match(line) for line in done.stderr.splitlines() if line.startswith("karst: trap")]
    assert all(lines), done.stderr
    return [line for line in lines if line]


@contextmanager
def running(*options: str, program: tuple[str | Path, ...], directory: Path, allocator: str = "glibc",
            ready: bool = True) -> Iterator[Program]:
    with started([KARST, "run", *options, "--", *program], directory, {"LD_PRELOAD": ALLOCATORS[allocator]},
                 ready=ready) as program_:
        yield program_


# ---- traps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "sizes"), [
    ("malloc 150", [150]),
    ("malloc 195:", [195, 196, 197, 198, 199, 777]),
    ("malloc :103", [20, 100, 101, 102, 103]),
    ("malloc 110/120/199", [110, 120, 199]),
    ("calloc 330", [330]),
    ("realloc", [5000, 1 << 20]),
    ("memalign 3000", [3000]),
    ("malloc 100:199 skip=98", [198, 199]),
    ("malloc 100:199 count=3", [100, 101, 102]),
    ("malloc 100:199 skip=10 count=1", [110]),
    ("malloc 100:199 event=3", [102]),
    ("malloc,calloc 199/330 caller=calls", [199, 330]),
    ("malloc 100:199 caller=libc.so.6", []),
    ("malloc 100:199 thread=1", []),
])
def test_trap_fires_for_the_calls_it_names(spec: str, sizes: list[int]) -> None:
    done = run("--trap", spec, CALLS, "sizes")
    assert done.returncode == 0 and done.stdout.endswith("done\n") and "errno" not in done.stdout
    got = [int(hit["arguments"].split(", ")[-1 if hit["function"] == "realloc" else 0]) for hit in hits(done)]
    if spec.endswith(":") or spec.startswith("malloc :"):  # libc's own calls (a FILE's buffer, say) come on top
        got = [size for size in got if size in sizes]
    assert sorted(got) == sorted(sizes)


def test_traps_before_and_after_know_the_address() -> None:
    after, before = (hits(run("--trap", f"malloc 150{word}", CALLS, "sizes"))[0] for word in ("", " before"))
    assert int(after["result"], 16) > 0 and before["result"] is None


def test_trap_on_an_address() -> None:
    """Blocks lie at the same place in each run without randomisation: the address of one is known before."""
    def fixed(spec: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["setarch", "-R", KARST, "run", "--trap", spec, CALLS, "sizes"], capture_output=True,
                              text=True, timeout=60, check=True)

    address = fixed("malloc 150").stdout.split()[1]
    found = hits(fixed(f"address={address}"))
    assert [hit["function"] for hit in found][:2] == ["malloc", "free"]
    assert found[0]["result"] == address and found[1]["arguments"] == address
    assert [hit["function"] for hit in hits(fixed(f"freed={address}"))][0] == "free"
    returned = hits(fixed(f"returned={address}"))
    assert returned and all(hit["result"] == address for hit in returned)


def test_event_numbers_are_the_same_in_each_run() -> None:
    seen = set()
    for _ in range(3):
        hit = hits(run("--trap", "any event=60", CALLS, "sizes"))[0]
        number = re.search(r"event (\d+)", hit["rest"])
        site = re.search(r"\((\S+)\)$", hit["rest"])
        assert number and site and number[1] == "60"
        seen.add((hit["function"], hit["arguments"], site[1]))
    assert len(seen) == 1


def test_growth_is_told_with_its_bytes() -> None:
    found = hits(run("--trap", "growth", CALLS, "sizes"))
    grown = [int(number[1]) for hit in found if (number := re.search(r"grew by (\d+) bytes", hit["rest"]))]
    assert len(grown) == len(found) > 0
    moved = [hit for hit in found if hit["function"] == "realloc" and hit["arguments"].endswith(", 1048576")]
    assert moved and re.search(r"grew by (\d+)", moved[0]["rest"])[1] >= "1"  # type: ignore[index]


def test_trap_set_by_the_control_block_at_run_time() -> None:
    done = run(CALLS, "own")
    assert [hit["trap"] for hit in hits(done)] == ["9"]
    assert "hits 1\ntaken 1\n" in done.stdout


def test_several_traps_each_count_for_themselves() -> None:
    done = run("--trap", "malloc 150", "--trap", "malloc 150:151", "--trap", "free", CALLS, "sizes")
    count = defaultdict(int)
    for hit in hits(done):
        count[hit["trap"]] += 1
    assert count["1"] == 1 and count["2"] == 2 and count["3"] >= 103


@pytest.mark.parametrize(("spec", "word"), [
    ("mallox 10", "'mallox'"), ("malloc 10x", "'10x'"), ("malloc 5:4", "'5:4'"), ("free 10", "no call"),
    ("malloc thread=x", "thread"), ("malloc 1/2/3/4/5/6/7/8/9", "8 sizes"), ("", "empty"), ("malloc 1 2", "second"),
    ("malloc action=explode", "actions"), ("malloc before growth", "growth"), ("malloc x=1", "'x='"),
    ("double-free nonsense", "'nonsense'"), ("malloc 99999999999999999999", "no size"),
])
def test_wrong_traps_are_refused_with_the_word(spec: str, word: str) -> None:
    done = run("--trap", spec, "true")
    assert done.returncode == 2 and word in done.stderr and len(done.stderr.splitlines()) == 1


# ---- what happens without a debugger --------------------------------------------------------------------------


def test_stop_waits_until_it_is_told_to_go_on(directory: Path) -> None:
    with running("--trap", "malloc 150", "--action", "stop", program=(CALLS, "sizes"), directory=directory,
                 ready=False) as program:
        end = time.monotonic() + 30
        while program.state() != "T":
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(program.pid, signal.SIGCONT)
        assert program.process.wait(timeout=30) == 0


@pytest.mark.skipif(not kernel_cores_land_here(), reason="cores go elsewhere")
def test_core_is_written_and_the_program_goes_on(directory: Path) -> None:
    with running("--trap", "malloc 150 action=core", program=(CALLS, "sizes"), directory=directory,
                 ready=False) as program:
        assert program.process.wait(timeout=60) == 0
    cores = list(directory.glob("core*"))
    assert len(cores) == 1
    info = Target.core(cores[0]).json("info")
    assert info["marker"]["traps"][0]["hits"] == 1


def test_abort_is_an_abort() -> None:
    done = run("--trap", "malloc 150", "--action", "abort", CALLS, "sizes")
    assert done.returncode == -signal.SIGABRT and len(hits(done)) == 1


def test_strace_is_no_debugger(directory: Path) -> None:
    """Its SIGTRAP would be the program's death."""
    if not shutil.which("strace"):
        pytest.skip("no strace")
    done = subprocess.run(["strace", "-f", "-o", directory / "log", KARST, "run", "--trap", "malloc 150", CALLS, "sizes"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and len(hits(done)) == 1


# ---- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize(("kind", "says", "sites"), [
    ("double", "double free", ["allocated", "freed", "called"]), ("foreign", "foreign pointer", ["called"]),
    ("global", "foreign pointer", ["called"]), ("wild", "foreign pointer", ["called"]),
    ("interior", "pointer into a block", ["allocated", "called"]), ("overflow", "overflow", ["allocated", "called"]),
    ("moved", "overflow", ["allocated", "called"]),
])
def test_faults_are_caught_at_the_call(kind: str, says: str, sites: list[str], allocator: str) -> None:
    done = run("--mark", CALLS, "fault", kind, allocator=allocator)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and done.stdout == "done\n", "a fault that is told of does no harm"
    assert len(lines) == 1 and lines[0].startswith(f"karst: {says}: "), done.stderr
    for site in sites:
        assert re.search(rf"{site} at 0x[0-9a-f]+ \(calls\+0x[0-9a-f]+\)", lines[0]), lines[0]
    size = {"interior": 500, "moved": 500}.get(kind, 20)
    assert ("of %d bytes" % size in lines[0]) == ("allocated" in sites)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_marks_of_all_sizes(allocator: str) -> None:
    """Empty blocks, blocks of less than a word, those with the longest short entry in the map and the shortest long
    one: a byte beyond the end of each is found, and a second free, and nothing else."""
    sizes = [start + more for start in (0, 65504, 131056, 1 << 20) for more in range(32)]
    assert run("--mark", CALLS, "bounds", "healthy", allocator=allocator).stderr == ""
    for kind, says in ("beyond", "overflow"), ("twice", "double free"):
        lines = run("--mark", CALLS, "bounds", kind, allocator=allocator).stderr.splitlines()
        assert [line.split(": ")[1] for line in lines] == [says] * len(sizes)
        told = [int(found[1]) for line in lines if (found := re.search(r"of (\d+) bytes", line))]
        if kind == "beyond":
            assert told == sizes


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_healthy_programs_have_no_faults(allocator: str, directory: Path) -> None:
    assert run("--mark", CALLS, "fault", "healthy", allocator=allocator).stderr == ""
    assert run("--mark", CALLS, "sizes", allocator=allocator).stderr == ""
    text = directory / "text"
    text.write_text("\n".join(str(i * 7919 % 100003) for i in range(20000)))
    for command in (["sort", "-n", text], ["git", "--version"], ["perl", "-e", "my %h = map { $_ => 'x' x $_ } 1..900"],
                    ["/usr/bin/python3", "-c", "import json, re; print(len(json.dumps(list(range(9999)))))"]):
        done, bare = run("--mark", "--recorder", *command, allocator=allocator), subprocess.run(
            command, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr, done.returncode) == (bare.stdout, "", bare.returncode), command


def test_fault_traps_turn_marks_on_and_choose() -> None:
    assert run("--trap", "double-free", CALLS, "fault", "double").stderr.startswith("karst: trap 1: double free: ")
    done = run("--trap", "overflow action=abort", CALLS, "fault", "overflow")
    assert done.returncode == -signal.SIGABRT
    assert run("--trap", "overflow", CALLS, "fault", "double").stderr.startswith("karst: double free: ")


# ---- marks --------------------------------------------------------------------------------------------------


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


# ---- the flight recorder ---------------------------------------------------------------------------------------


def history(target: Target, *arguments: str) -> Any:
    return target.json("history", *arguments)


@pytest.mark.parametrize(("threads", "rounds"), [(1, 20000), (2, 60000), (4, 20000)])
def test_history_is_what_happened_in_its_order(threads: int, rounds: int, directory: Path) -> None:
    with running("--recorder=16M", program=(CALLS, "hand", str(threads), str(rounds)), directory=directory) as program:
        answer = history(Target.process(program.pid), "--all")
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
    assert answer["disorder"] == 0 and all(thread["overwritten"] == 0 for thread in answer["threads"])
    wanted: dict[str, list[tuple[int, str]]] = defaultdict(list)
    got: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for address, thread, kind in truth:
        wanted[address].append((int(thread), kind))
    for event in answer["events"]:
        address, kind = (event["block"], "f") if event["event"] == "free" else (event["gave"], "a")
        if address in wanted and any("hand+" in frame["text"] for frame in event["stack"]):
            got[address].append((event["thread"], kind))
    assert got == wanted


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("threads", [2, 4])
def test_no_event_contradicts_another(threads: int, allocator: str, directory: Path) -> None:
    """Threads that free each other's blocks as fast as they can: no block is given twice or freed twice."""
    rounds = int(os.environ.get("KARST_ORDER_ROUNDS", "500000"))
    with running(f"--recorder={rounds // 10000 + 1}M", program=(CALLS, "swap", str(threads), str(rounds)),
                 directory=directory, allocator=allocator) as program:
        answer = history(Target.process(program.pid), "--last", "1")
    assert answer["disorder"] == 0
    assert all(thread["overwritten"] == 0 for thread in answer["threads"])
    assert answer["kept"] == pytest.approx(2 * threads * rounds, abs=200)


def test_history_of_one_address_size_and_thread(directory: Path) -> None:
    with running("--recorder=4M", program=(CALLS, "hand", "2", "2000"), directory=directory) as program:
        target = Target.process(program.pid)
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        address = truth[-1][0]
        events = history(target, address, "--all")["events"]
        assert len(events) == sum(line[0] == address for line in truth)
        inside = history(target, hex(int(address, 16) + 8), "--all")["events"]
        assert len(inside) == len(events)
        thread = int(truth[-1][1])
        assert {event["thread"] for event in history(target, "--thread", str(thread), "--all")["events"]} == {thread}
        sized = history(target, "--size", "30:31", "--all")["events"]
        assert sized and {event["size"] for event in sized} <= {30, 31}
        assert history(target, "--last", "5")["shown"] == 5
        block = target.json("block", address)
        told = next(fact["text"] for fact in block["facts"] if fact["name"] == "history")
        assert told.startswith(f"{len(events)} events kept") and f"by thread {events[-1]['thread']} at hand+" in told
        text = target.run("history", address, "--last", "3").stdout
        assert f"3 of {len(events)} events shown" in text and "hand+" in text


def test_history_of_a_core(directory: Path) -> None:
    with running("--recorder=4M", "--mark", program=(CALLS, "hand", "2", "3000"), directory=directory) as program:
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        core = core_of(program)
    address = truth[-1][0]
    events = history(Target.core(core), address, "--all")["events"]
    assert [(event["thread"], event["event"]) for event in events] == [
        (int(thread), "free" if kind == "f" else "alloc") for at, thread, kind in truth if at == address]


def test_wrap_around_is_told(directory: Path) -> None:
    with running("--recorder=64K", program=(CALLS, "hand", "1", "50000"), directory=directory) as program:
        target = Target.process(program.pid)
        answer = history(target, "--all")
        assert 3000 < answer["kept"] <= 4096 + 8
        lost = sum(thread["overwritten"] for thread in answer["threads"])
        assert lost + answer["kept"] == pytest.approx(100_000, abs=100)
        assert "older events were overwritten" in target.run("history").stdout
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        last = [event["block"] or event["gave"] for event in answer["events"]][-200:]
        assert [line[0] for line in truth[-150:]] == [address for address in last if address in
                                                      {line[0] for line in truth}][-150:]


def test_history_after_a_kill(directory: Path) -> None:
    rings = directory / "rings"
    with running("--recorder=1M", f"--recorder-dir={rings}", program=(CALLS, "hand", "2", "5000"),
                 directory=directory) as program:
        live = history(Target.process(program.pid), "--all")
        truth = [line.split() for line in (directory / "truth").read_text().splitlines()]
        os.kill(program.pid, signal.SIGKILL)
        program.process.wait(timeout=10)
    done = karst("history", "--files", rings, "--all", "--json")
    assert done.returncode == 0, done.stderr
    dead = json.loads(done.stdout)
    assert [event["stack"] for event in dead["events"]] == [event["stack"] for event in live["events"]]
    assert dead["events"] == live["events"] and dead["kept"] == live["kept"]
    assert karst("history", "--files", rings, truth[-1][0], "--all").stdout.count("hand+") == \
        sum(line[0] == truth[-1][0] for line in truth)


def test_forked_children_start_clean(directory: Path) -> None:
    with running("--recorder=1M", program=(CALLS, "fork"), directory=directory) as program:
        children = [int(line.split()[1]) for line in program.lines if line.startswith("child")]
        assert len(children) == 2
        own = history(Target.process(program.pid), "--size", "2000:4000", "--all")["events"]
        assert [event["size"] for event in own] == [*range(2000, 2100), 4000]
        for child in children:
            events = history(Target.process(child), "--size", "2000:4000", "--all")
            assert [event["size"] for event in events["events"]] == [3000, 3001, 3002, 3003, 3004]
            assert {event["thread"] for event in events["events"]} == {child}


# ---- living in other people's programs -------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_threads_and_forks_under_everything(allocator: str) -> None:
    done = run("--mark", "--recorder", "--trap", "any 5000", CALLS, "hammer", "1", allocator=allocator)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_setuid_and_static_programs_are_refused(directory: Path) -> None:
    static = run("--mark", TESTS / "ledger-static")
    assert static.returncode == 2 and "static" in static.stderr
    if os.geteuid() != 0:
        pytest.skip("only root can make a setuid program of another user")
    other = directory / "setuid"
    shutil.copy(CALLS, other)
    os.chown(other, 65534, 65534)
    other.chmod(0o4755)
    assert "setuid" in run("--mark", other, "sizes").stderr


def test_setuid_program_linked_with_the_library_is_left_alone(directory: Path) -> None:
    """LD_PRELOAD is not taken there, but the library may come in another way: it does nothing then."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a setuid program of another user")
    directory.chmod(0o755)
    shutil.copy(LIBRARY, directory / LIBRARY.name)
    source = directory / "linked.c"
    source.write_text("#include <stdio.h>\n#include <stdlib.h>\n"
                      "int main(void) { void *volatile p = malloc(150); free(p); puts(\"done\"); }\n")
    program = directory / "linked"
    subprocess.run(["gcc", "-w", "-o", program, source, "-Wl,--no-as-needed", directory / LIBRARY.name,
                    f"-Wl,-rpath,{directory}"], check=True)
    environment = {**os.environ, "KARST_TRAP": "malloc 150", "KARST_MARK": "1"}
    first = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=30)
    assert "trap 1" in first.stderr
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    second = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=30)
    assert (second.returncode, second.stdout, second.stderr) == (0, "done\n", "")


def test_command_and_children_keep_their_status_and_output() -> None:
    done = run("--mark", "--recorder", "sh", "-c", "echo out; echo err >&2; /usr/bin/python3 -c 'import os; os._exit(3)'; exit $?")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert run("no-such-command").returncode == 127
    assert run().returncode == 2 and "which command" in run().stderr


@pytest.mark.parametrize("options", [["--recorder=0", "x"], ["--recorder=x", "x"], ["--stacks=65", "x"],
                                     ["--stacks=0", "x"], ["--action=maybe", "x"], ["--nothing", "x"]])
def test_wrong_options_are_one_line(options: list[str]) -> None:
    done = run(*options)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_nothing_asked_for_nothing_said() -> None:
    bare = Target.process(os.getpid())
    for verb in ("sites", "history"):
        done = bare.run(verb)
        assert done.returncode == 2 and "karst run" in done.stderr and len(done.stderr.splitlines()) == 1
