"""Programs do the same with the preload library in them as without: CPython's own tests, redis under load, git and
perl at work, a C++ program with all operators, 16 threads with forks; with each part on, and under each allocator.
`make test-preload` runs it; it takes half an hour or more. KARST_PYTHON_TESTS="test_gc test_json": these only;
KARST_HAMMER_SECONDS: for how long each allocator is hammered (60)."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from karst_command import KARST, TESTS

MODES = {
    "off": [],
    "trap": ["--trap", "any 123456789"],
    "recorder": ["--recorder=256K"],
    "marks": ["--mark"],
    "all": ["--mark", "--recorder=256K", "--trap", "any 123456789", "--trap", "faults"],
}
ALLOCATORS = {"glibc": "", "jemalloc": "libjemalloc.so.2", "tcmalloc": "libtcmalloc_minimal.so.4",
              "mimalloc": "libmimalloc.so.2.0"}
PYTHON_TESTS = os.environ.get("KARST_PYTHON_TESTS", "test_threading test_fork1 test_subprocess test_signal "
                              "test_multiprocessing_fork test_ctypes test_gc test_json test_re test_dict test_mmap "
                              "test_zlib test_pickle test_bytes test_array test_set test_thread").split()
HAMMER_SECONDS = os.environ.get("KARST_HAMMER_SECONDS", "60")
# Each mode with glibc's malloc; everything on with each of the others.
COMBINATIONS = [("glibc", mode) for mode in MODES] + [(allocator, "all") for allocator in ALLOCATORS
                                                     if allocator != "glibc"]


def command(mode: str | None, *words: str | os.PathLike[str]) -> list[str]:
    start = [] if mode is None else [os.fspath(KARST), "run", *MODES[mode], "--"]
    return [*start, *map(os.fspath, words)]


def environment(allocator: str) -> dict[str, str]:
    without = {"SITED_NO_PVALLOC": "1"} if allocator == "jemalloc" else {}
    return {**os.environ, "LD_PRELOAD": ALLOCATORS[allocator], **without}


def python_results(mode: str | None, allocator: str, name: str, directory: Path) -> dict[str, str]:
    """What became of each test of one of CPython's test modules."""
    report = directory / f"{name}.xml"
    done = subprocess.run(command(mode, "/usr/bin/python3", "-m", "test", "-u", "all,-network,-gui,-audio,-largefile,-cpu",
                                  "--junit-xml", report, name),
                          cwd=directory, env=environment(allocator), capture_output=True, text=True, timeout=1200)
    assert "karst:" not in done.stderr and "karst:" not in done.stdout, done.stdout + done.stderr
    results = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = [child.tag for child in case if child.tag in ("failure", "error")]
        results[case.get("name", "")] = bad[0] if bad else case.get("result", "completed")
    return results


@pytest.fixture(scope="module")
def bare_results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, str]]:
    """Without the library, made when first asked for."""
    class Bare(dict):  # type: ignore[type-arg]
        def __missing__(self, key: tuple[str, str]) -> dict[str, str]:
            allocator, name = key
            self[key] = python_results(None, allocator, name, tmp_path_factory.mktemp("bare"))
            return self[key]  # type: ignore[no-any-return]

    return Bare()


@pytest.mark.parametrize("name", PYTHON_TESTS)
@pytest.mark.parametrize(("allocator", "mode"), COMBINATIONS)
def test_cpython_passes_what_it_passes_without(allocator: str, mode: str, name: str, directory: Path,
                                               bare_results: dict[tuple[str, str], dict[str, str]]) -> None:
    if not Path("/usr/lib/python3.11/test/test_gc.py").exists():
        pytest.skip("no libpython3.11-testsuite")
    bare, with_it = bare_results[allocator, name], python_results(mode, allocator, name, directory)
    assert bare
    worse = {case: (bare[case], with_it.get(case)) for case in bare if with_it.get(case) != bare[case]}
    if worse:  # a test that depends on the time of day or the load: once more, both ways
        bare = python_results(None, allocator, name, directory)
        with_it = python_results(mode, allocator, name, directory)
        worse = {case: (bare[case], with_it.get(case)) for case in bare if with_it.get(case) != bare[case]}
    assert not worse


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def redis(port: int, *words: str) -> str:
    return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(("allocator", "mode"), COMBINATIONS)
def test_redis_under_load(allocator: str, mode: str, directory: Path) -> None:
    port = free_port()
    log = directory / "log"
    with log.open("w") as output:
        server = subprocess.Popen(command(mode, "redis-server", "--port", str(port), "--dir", directory, "--save", ""),
                                  env=environment(allocator), stdout=output, stderr=output)
    try:
        end = time.monotonic() + 30
        while "PONG" not in redis(port, "ping"):
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        load = subprocess.run(["redis-benchmark", "-p", str(port), "-q", "-n", "20000", "-c", "20", "-d", "300", "-r",
                               "5000", "-t", "set,get,incr,lpush,rpop,sadd,hset,spop,zadd,lrange_100,mset"],
                              capture_output=True, text=True, timeout=300)
        assert load.returncode == 0 and "requests per second" in load.stdout
        for i in range(200):
            redis(port, "set", f"key{i}", "v" * i)
        assert redis(port, "bgsave").startswith("Background saving")
        while "rdb_bgsave_in_progress:0" not in redis(port, "info", "persistence"):
            time.sleep(0.05)
        assert "rdb_last_bgsave_status:ok" in redis(port, "info", "persistence")
        assert [redis(port, "get", f"key{i}").strip() for i in range(200)] == ["v" * i for i in range(200)]
        redis(port, "shutdown", "nosave")
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()
    assert "karst:" not in log.read_text() and "crashed" not in log.read_text()


GIT = """
set -e
export GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' HOME=$PWD
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main one && cd one
for n in 1 2 3 4 5 6 7 8; do
    perl -e 'print map { ($_ * 7919 * '$n' % 10007) . "\\n" } 1..3000' > file$n
    perl -pe 's/(\\d)(\\d)/$2$1/g' file$n | sort -n > sorted$n
    git add . && git commit -q -m "change $n"
done
git gc -q --aggressive && git fsck --full --strict && git log --stat | cat && git diff HEAD~3 | md5sum
cd .. && git clone -q one two && cd two && git rev-parse HEAD && cat * | md5sum
"""


@pytest.mark.parametrize(("allocator", "mode"), COMBINATIONS)
def test_git_and_perl_at_work(allocator: str, mode: str, directory: Path) -> None:
    def work(mode: str | None) -> tuple[str, str, int]:
        folder = directory / str(mode)
        folder.mkdir()
        done = subprocess.run(command(mode, "sh", "-c", GIT), cwd=folder, env=environment(allocator),
                              capture_output=True, text=True, timeout=300)
        return done.stdout, done.stderr, done.returncode

    assert work(mode) == work(None)


@pytest.mark.parametrize(("allocator", "mode"), COMBINATIONS)
def test_all_of_cxx(allocator: str, mode: str) -> None:
    def work(mode: str | None) -> list[str]:
        with subprocess.Popen(command(mode, TESTS / "sited", "8", "100000"), env=environment(allocator),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
            assert program.stdout is not None
            lines = []
            for line in program.stdout:
                if line.startswith("ready"):
                    break
                lines.append(line)
            program.kill()
        return lines

    bare = work(None)
    assert len(bare) == 14 and work(mode) == bare


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_hammered_with_forks(allocator: str) -> None:
    done = subprocess.run(command("all", TESTS / "calls", "hammer", HAMMER_SECONDS), env=environment(allocator),
                          capture_output=True, text=True, timeout=int(HAMMER_SECONDS) + 120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
