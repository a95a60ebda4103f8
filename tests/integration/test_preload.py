"""The preload library: traps, faults caught at the call, and life in programs that are not ours."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import pytest
from karst_command import KARST, TESTS, Target
from karst_preload import ALLOCATORS, CALLS, LIBRARY, run, running
from karst_programs import kernel_cores_land_here

LINE = re.compile(r"^karst: trap (?P<trap>\d+): (?P<function>[\w\[\]]+)\((?P<arguments>.*?)\)(?: = (?P<result>\w+))?(?P<rest>.*)$")


def hits(done: subprocess.CompletedProcess[str]) -> list[re.Match[str]]:
    """The lines of traps, in the order they were written."""
    lines = [LINE.match(line) for line in done.stderr.splitlines() if line.startswith("karst: trap")]
    assert all(lines), done.stderr
    return [line for line in lines if line]


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
    ("growth,malloc", "'growth' stands apart"), ("malloc,100", "'100' stands apart"), ("malloc,", "a comma with no function"),
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
    sizes = [start + more for start in (0, 1510, 65504, 1 << 20) for more in range(32)]
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
