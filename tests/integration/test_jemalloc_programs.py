"""Real programs on jemalloc: healthy wherever they were stopped, and redis-server's totals are what it says."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from karst_command import TESTS, Target
from karst_jemalloc import LIBRARY
from karst_programs import gcore, started
from karst_works import WORKS, let_it_work, process_to_look_at, require
from test_real_programs import LOOKS, findings_of

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"no {LIBRARY}")

NAMES = ["python3", "python3-threads", "perl", "awk", "sqlite3", "git", "sort", "nginx"]


@pytest.mark.parametrize("name", NAMES)
def test_healthy(name: str, directory: Path) -> None:
    work = WORKS[name](directory)
    environment = {**work.environment, "LD_PRELOAD": str(LIBRARY)}
    with started(work.command, directory, environment, ready=False) as program:
        let_it_work(work, program)
        pid = process_to_look_at(work, program.pid)
        for _ in range(LOOKS):
            os.kill(pid, signal.SIGSTOP)
            target = Target.process(pid)
            assert "jemalloc" in [row["name"] for row in target.json("summary")["allocators"]]
            findings = findings_of(target)
            os.kill(pid, signal.SIGCONT)
            if not findings:
                return
            time.sleep(0.1)
    pytest.fail(f"suspect in each of {LOOKS} looks: " + "\n".join(map(str, findings)), pytrace=False)


def test_a_sleeping_background_thread_is_not_inside(directory: Path) -> None:
    """Else whatever is found there, in redis-server say, would be `suspect` for good."""
    environment = {"LD_PRELOAD": str(LIBRARY), "MALLOC_CONF": "background_thread:true,dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    with started([TESTS / "ledger", "--threads=2", "--slots=500", directory], directory, environment) as program:
        end = time.monotonic() + 60
        while "jemalloc_bg_thd\n" not in [path.read_text() for path in Path(f"/proc/{program.pid}/task").glob("*/comm")]:
            assert time.monotonic() < end, "no background thread"
            time.sleep(0.01)
        for _ in range(LOOKS):  # now and then it wakes up, and is
            calm = not Target.process(program.pid).json("info")["allocators"][0]["in_flux"]
            if calm and not Target.core(gcore(program.pid, directory)).json("info")["allocators"][0]["in_flux"]:
                return
            time.sleep(0.2)
    pytest.fail(f"inside in each of {LOOKS} looks")


# ---- redis-server, which Debian builds with jemalloc ------------------------------------------------------

Ask = Callable[..., bytes]


def connect(path: Path) -> socket.socket:
    end = time.monotonic() + 30
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except OSError:
            connection.close()
            assert time.monotonic() < end, "redis-server does not listen"
            time.sleep(0.05)


def encoded(words: tuple[str | bytes, ...]) -> bytes:
    parts = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def ask(connection: socket.socket, *words: str | bytes) -> bytes:
    """One answer; those asked for here are a line, or a string told with its length."""
    connection.sendall(encoded(words))
    answer = b""
    while b"\r\n" not in answer:
        answer += connection.recv(65536)
    if answer.startswith(b"$"):
        length = int(answer[1:answer.index(b"\r\n")])
        while len(answer) < answer.index(b"\r\n") + 4 + length:
            answer += connection.recv(65536)
    return answer


def load(connection: socket.socket) -> None:
    """Values of all sizes in several types, a third of them deleted again."""
    batch, commands, answers = bytearray(), 0, 0  # an answer is a line
    for number in range(30000):
        value = b"v" * (number * 7919 % (40000 if number % 100 == 0 else 400) + 1)
        batch += encoded(("SET", f"key:{number}", value))
        batch += encoded(("HSET", f"hash:{number % 500}", f"field:{number}", value[:80]))
        if number % 3 == 0:
            batch += encoded(("DEL", f"key:{number // 2}"))
            commands += 1
        commands += 2
    sent = 0
    connection.setblocking(False)
    while answers < commands:
        readable, writable, _ = select.select([connection], [connection] if sent < len(batch) else [], [], 60)
        assert readable or writable, f"redis-server answered {answers} of {commands} commands"
        if writable:
            sent += connection.send(batch[sent:sent + 65536])
        if readable:
            answers += connection.recv(1 << 20).count(b"\n")
    connection.setblocking(True)


def test_redis(directory: Path) -> None:
    program = require("redis-server", TESTS / "redis/usr/bin/redis-check-rdb")
    libraries = TESTS / "redis/usr/lib/x86_64-linux-gnu"
    command = [program, "--port", "0", "--unixsocket", "s", "--save", "", "--activedefrag", "no"]
    if program.endswith("redis-check-rdb"):
        (directory / "redis-server").symlink_to(program)
        command[0] = "./redis-server"
    environment = {"LD_LIBRARY_PATH": str(libraries)} if libraries.exists() else {}
    with started(command, directory, environment, ready=False) as server, closing(connect(directory / "s")) as connection:
        load(connection)
        time.sleep(0.2)  # ten times a second it takes the figures; if it is late, behind the next answer
        ask(connection, "PING")
        told = dict(re.findall(rb"(allocator_\w+):([0-9]+)", ask(connection, "INFO", "memory")))
        stats = ask(connection, "MEMORY", "MALLOC-STATS")
        os.kill(server.pid, signal.SIGSTOP)
        target = Target.process(server.pid, "--no-symbols")
        assert target.check() == (True, [])
        [row] = target.json("summary")["allocators"]
        core = Target.core(gcore(server.pid, directory), "--no-symbols")
        assert core.check() == (True, [])
        assert core.json("summary")["allocators"][0]["own"] == row["own"]
        os.kill(server.pid, signal.SIGCONT)
    own = row["own"]
    assert row["name"] == "jemalloc" and row["live"]["blocks"] > 20000
    # What its answers themselves took moves in between.
    moved = 1 << 20
    assert abs(own["allocated"] - int(told[b"allocator_allocated"])) < moved, (own, told)
    assert abs(own["active"] - int(told[b"allocator_active"])) < moved, (own, told)
    said = re.search(rb"Allocated: (\d+), active: (\d+), metadata: (\d+).*mapped: (\d+), retained: (\d+)", stats)
    assert said
    for name, value in zip(("allocated", "active", "metadata", "mapped", "retained"), map(int, said.groups())):
        assert abs(own[name] - value) < moved, (name, own, said.groups())
