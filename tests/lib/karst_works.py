"""Real programs, each given work that keeps its heap busy for longer than a test looks at it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from karst_command import TESTS
from karst_programs import READY_SECONDS, Program

PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Work:
    """A command line, run in a directory of its own; seconds of processor time that it works before it is looked at,
    for servers of time; nudge: called again and again meanwhile, for servers; worker: look at the newest child."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.3
    nudge: Callable[[], None] | None = None
    worker: bool = False


def require(program: str, *places: Path) -> str:
    for place in places:
        if place.exists():
            return str(place)
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    return found


def prepare(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout} {done.stderr}"


def random_numbers(seed: int = 1) -> Iterator[int]:
    while True:
        seed = (seed * 1103515245 + 12345) % (1 << 31)
        yield seed


# ---- interpreters ---------------------------------------------------------------------------------------

PYTHON_TABLES = """
import collections, json
table = collections.defaultdict(list)
number = 1
while True:
    number = (number * 1103515245 + 12345) % (1 << 31)
    table[number % 5000].append(str(number) * (number % 50))
    if number % 3 == 0:
        table.pop(number % 4999, None)
    if number % 1000 == 0:
        json.loads(json.dumps(dict(table)))
"""

PYTHON_THREADS = """
import threading, zlib
def work(seed):
    kept = []
    while True:
        seed = (seed * 1103515245 + 12345) % (1 << 31)
        kept.append(zlib.compress(bytes(seed % 100000)))
        if len(kept) > 500:
            del kept[seed % 400:]
for seed in range(4):
    threading.Thread(target=work, args=(seed,)).start()
"""

PERL_TABLES = """
my %table; my $number = 1;
while (1) {
    $number = ($number * 1103515245 + 12345) % (1 << 31);
    push @{$table{$number % 7001}}, ($number x ($number % 20));
    delete $table{$number % 6999} if $number % 3 == 0;
}
"""

NODE_TABLES = """
const table = new Map(); let number = 1;
function step() {
    for (let i = 0; i < 20000; i++) {
        number = (number * 69069 + 12345) % 4294967296;
        table.set(number % 9001, Buffer.alloc(number % 20000));
        table.set('k' + number % 9001, String(number).repeat(number % 40));
    }
    setImmediate(step);
}
step();
"""

AWK_TABLES = """
BEGIN {
    while (1) {
        n = (n * 69069 + 12345) % 2147483648
        if (length(table[n % 333]) > 3000) delete table[n % 333]
        table[n % 70001] = table[n % 333] sprintf("%d ", n)
    }
}
"""

BASH_TABLES = """
declare -A table; n=1
while :; do
    n=$(( (n * 69069 + 12345) % 4294967296 ))
    table[k$((n % 3000))]="${table[k$((n % 77))]:0:500} $n"
    (( n % 5 )) || unset "table[k$((n % 2999))]"
done
"""

SQLITE_TABLES = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
INSERT INTO t SELECT i, hex(randomblob(i % 200)), randomblob(i % 3000) FROM n;
"""

# GDB asks itself for symbols, of the program and of itself.
GDB_QUESTIONS = """
set pagination off
python
while True:
    gdb.execute("info functions a", to_string=True)
    gdb.execute("info types s", to_string=True)
end
"""


def python(_: Path) -> Work:
    return Work([PYTHON, "-c", PYTHON_TABLES], {"PYTHONMALLOC": "malloc"})


def python_threads(_: Path) -> Work:
    return Work([PYTHON, "-c", PYTHON_THREADS])


def perl(_: Path) -> Work:
    return Work([require("perl"), "-e", PERL_TABLES])


def node(_: Path) -> Work:
    return Work([require("node"), "-e", NODE_TABLES], seconds=1.0)


def awk(_: Path) -> Work:
    return Work([require("awk"), AWK_TABLES])


def bash(_: Path) -> Work:
    return Work([require("bash"), "-c", BASH_TABLES])


def sqlite(_: Path) -> Work:
    create = "PRAGMA temp_store = memory; CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT, c BLOB);"
    return Work([require("sqlite3"), ":memory:", create + SQLITE_TABLES])


def gdb(directory: Path) -> Work:
    (directory / "questions").write_text(GDB_QUESTIONS)
    return Work([require("gdb"), "-nx", "-q", "-batch", "-x", "questions", str(TESTS / "ledger-static")], seconds=0.8)


# ---- tools ----------------------------------------------------------------------------------------------


def git(directory: Path) -> Work:
    program = require("git")
    numbers = random_numbers()
    for name in range(600):
        lines = "\n".join(str(next(numbers) % 1000) for _ in range(600))
        (directory / f"file{name}").write_text(lines)
    prepare([program, "init", "-q"], directory)
    prepare([program, "add", "-A"], directory)
    prepare([program, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "all"], directory)
    # Each file is held against each other: that takes it some seconds.
    command = [program, "pack-objects", "--revs", "--all", "-q", "--no-reuse-delta", "--threads=3"]
    return Work([*command, "--window=2000", "--depth=200", "p"])


def compiler(directory: Path) -> Work:
    command = [require("gcc"), "-print-prog-name=cc1"]
    cc1 = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with open(directory / "big.c", "w", encoding="ascii") as file:
        for number in range(1, 20000):
            file.write(
                f"struct s{number} {{ int a[{number}]; struct s{number - 1} *next; }};\n"
                f"int f{number}(struct s{number} *s, int i) {{ for (int j = 0; j < i; j++) "
                f"s->a[j % {number}] += j * {number}; return s->a[0]; }}\n"
            )
    return Work([cc1, "-quiet", "-O2", "-g", "big.c", "-o", "/dev/null"], seconds=0.8)


def xz(directory: Path) -> Work:
    with open(directory / "big", "wb") as file:
        for _, number in zip(range(60000), random_numbers()):
            file.write(number.to_bytes(4, "little") * (number % 300))
    return Work([require("xz"), "-9e", "-T", "2", "--block-size=4MiB", "-k", "big"])


def sort(directory: Path) -> Work:
    with open(directory / "lines", "w", encoding="ascii") as lines:
        for _, number in zip(range(300000), random_numbers()):
            lines.write(f"{number:08x} key{number % 977} {'x' * (number % 60)}\n")
    files = ["lines"] * 8
    return Work([require("sort"), "--parallel=2", "-S", "64M", "-k2", "-o", "/dev/null", *files], {"LC_ALL": "C.UTF-8"})


# ---- servers --------------------------------------------------------------------------------------------


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


NGINX_CONFIGURATION = """
daemon off; pid nginx.pid; error_log stderr crit; user {user};
events {{ }}
http {{
    access_log off;
    client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{ listen 127.0.0.1:{port}; root {directory}; autoindex on; gzip on; gzip_types text/plain; gzip_proxied any; }}
}}
"""


def nginx(directory: Path) -> Work:
    program = require("nginx", TESTS / "nginx/usr/sbin/nginx")
    port = free_port()
    user = pwd.getpwuid(os.getuid()).pw_name
    text = NGINX_CONFIGURATION.format(user=user, port=port, directory=directory)
    (directory / "nginx.conf").write_text(text)
    kept: list[socket.socket] = []

    def ask() -> None:
        """Connections that stay in the middle of something, and some that end."""
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.sendall(b"GET /nginx.conf HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\nGET / HTTP/1.1\r\nX: ")
        kept.append(connection)
        if len(kept) > 60:
            kept.pop(0).close()

    return Work([program, "-p", str(directory), "-c", "nginx.conf"], seconds=0.6, nudge=ask, worker=True)


POSTGRES_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)


def postgres(directory: Path) -> Work:
    """A backend of one, without a server around it: `postgres --single`. It refuses to be root."""
    program = require("postgres", *POSTGRES_PLACES)
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = [require("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        os.chown(directory, pwd.getpwnam("nobody").pw_uid, -1)
        for parent in [directory, *directory.parents]:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o001)
    initdb = Path(program).resolve().with_name("initdb")
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    command = [*as_user, str(initdb), "-D", "data", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"]
    prepare(command, directory, environment)
    query = (
        "select string_agg(repeat(md5(i::text), i % 20), ',' order by md5(i::text)) "
        "from generate_series(1, 100000000) i group by i % 1000\n"
    )
    (directory / "query").write_text(query)
    shell = f'exec "{program}" --single -D data -c work_mem=1GB postgres < query'
    return Work([*as_user, "sh", "-c", shell], {"HOME": str(directory)}, seconds=1.0)


WORKS: dict[str, Callable[[Path], Work]] = {
    "python3": python,
    "python3-threads": python_threads,
    "perl": perl,
    "node": node,
    "awk": awk,
    "bash": bash,
    "sqlite3": sqlite,
    "gdb": gdb,
    "git": git,
    "cc1": compiler,
    "xz": xz,
    "sort": sort,
    "nginx": nginx,
    "postgres": postgres,
}


def let_it_work(work: Work, program: Program) -> None:
    """On a machine that is busy with other things, too, it has worked as long."""
    end, used = time.monotonic() + READY_SECONDS, 0.0
    while used < work.seconds:
        assert program.process.poll() is None, f"{work.command} has ended already"
        assert time.monotonic() < end, f"{work.command} has worked {used} s in {READY_SECONDS:.0f} s"
        time.sleep(0.01)
        if work.nudge is None:
            used = processor_seconds(program.pid)
        else:
            used += 0.01 * nudged(work.nudge)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def nudged(nudge: Callable[[], None]) -> bool:
    try:
        nudge()
    except ConnectionRefusedError:
        return False  # not listening yet
    return True


def process_to_look_at(work: Work, pid: int) -> int:
    if not work.worker:
        return pid
    end = time.monotonic() + READY_SECONDS
    while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < end, "it has no child"
        time.sleep(0.01)
    return int(children[-1])
