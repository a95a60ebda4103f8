"""Arguments, errors, repetition, completion, values and settings of karst in GDB."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import BASE, PLUGIN, SECONDS, Said, gdb, gdb_plain, gdbserver
from karst_command import BUILD, ROOT, TESTS, Target
from karst_programs import gcore, kernel_cores_land_here, started

DEBUGGED = TESTS / "debugged"
SHAPES = TESTS / "shapes"


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a program with three threads, each in handle_request()."""
    directory = tmp_path_factory.mktemp("core")
    with started([DEBUGGED], directory) as program:
        return gcore(program.pid, directory)


def address_in(said: Said) -> str:
    return said.json()["asked"]


# ---- arguments ---------------------------------------------------------------------------------------


def test_addresses_are_expressions(core: Path, directory: Path) -> None:
    expressions = {
        "buf": "buf",
        "request.buffer": "request.buffer",
        "request.buffer + 8": "request.buffer + 8",
        "buf - 8 + 16": "buf + 8",
        "buf -8": "buf - 8",
        "list[2]": "list[2]",
        "(char *) buf + 4": "buf + 4",
        "'debugged.c'::kept": "kept",
        "kept->buffer": "kept->buffer",
        "*kept": None,
        "$stored": "buf",
    }
    commands = ["thread 1", "frame function handle_request", "set var $stored = buf"]
    for expression, same in expressions.items():
        commands += [f"karst block {expression} --json", f"karst block --json {expression}"]
        if same is not None:
            commands.append(f"printf \"%#lx\\n\", (unsigned long) ({same})")
    answers = gdb([DEBUGGED, core], commands, directory)
    for expression, same in expressions.items():
        for command in (f"karst block {expression} --json", f"karst block --json {expression}"):
            if same is None:
                assert "not an address" in answers.of(command).one_line()
            else:
                expected = answers.of(f"printf \"%#lx\\n\", (unsigned long) ({same})").good().strip()
                assert address_in(answers.of(command)) == expected, command


def test_options_that_are_addresses(core: Path, directory: Path) -> None:
    asked = ["karst blocks --from kept --to=kept+1 --json", "karst blocks --from kept --to (char*)kept + 1 --json",
             "karst blocks --from kept --to '(char*)kept + 1' --json", "karst blocks --json -n 1 --from kept",
             "karst blocks --js -n1 --from kept", "print/x (long) kept"]
    answers = gdb([DEBUGGED, core], asked, directory)
    kept = int(answers.of("print/x (long) kept").good().split("=")[1], 16)
    for command in (asked[0], asked[2], asked[3], asked[4]):
        assert int(answers.of(command).json()["blocks"][0]["address"], 16) == kept, command
    assert answers.of(asked[1]).one_line()  # "+ 1" are words of their own


@pytest.mark.parametrize("command, says", [
    ("karst block nothing_of_that_name", "nothing_of_that_name"),
    ("karst block", "ADDRESS"),
    ("karst block 1 +", "1 +"),
    ("karst block (void) 0", "no value"),
    ("karst block 1.5", "not an address"),
    ("karst block 0x12345678901234567", "64 bits"),
    ("karst block *(int *) 0", "Cannot access memory"),
    ("karst block &kept", "in no heap"),
    ("karst block 16", "in no heap"),
    ("karst blocks --limit", "--limit"),
    ("karst blocks --limit many", "many"),
    ("karst blocks -n", "-n"),
    ("karst blocks --stat", "--stat"),
    ("karst blocks --state lively", "lively"),
    ("karst blocks --arena nowhere", "nowhere"),
    ("karst blocks --json=yes", "--json"),
    ("karst blocks word", "word"),
    ("karst blocks --type Nothing", "no type Nothing"),
    ("karst block kept --type Nothing", "no type Nothing"),
    ("karst summary --nothing", "--nothing"),
    ("karst nothing", "no verb 'nothing'"),
    ("print $_karst_size()", "one address"),
    ("print $_karst_size(1, 2)", "one address"),
    ("print $_karst_size(*kept)", "not an address"),
])
def test_wrong_arguments_cost_one_line(core: Path, directory: Path, command: str, says: str) -> None:
    said = gdb([DEBUGGED, core], [command], directory).of(command)
    if command == "karst blocks --stat":  # a beginning that one option has
        said = gdb([DEBUGGED, core], ["karst blocks --stat nothing"], directory).of("karst blocks --stat nothing")
        says = "nothing"
    assert says in said.one_line()
    assert said.text == ""


# ---- what is shown and set ----------------------------------------------------------------------------


def test_last_address_and_status(core: Path, directory: Path) -> None:
    commands = ["karst blocks --limit 3 --json", "output/x (long) $_", "karst block $_ --json", "whatis $_",
                "karst check", "output $_karst_status"]
    answers = gdb([DEBUGGED, core], commands, directory)
    last = answers.of(commands[0]).json()["blocks"][-1]["address"]
    assert answers.of("output/x (long) $_").good() == last
    assert answers.of(commands[2]).json()["block"]["address"] == last
    assert answers.of("whatis $_").good() == "type = void *\n"
    assert answers.of("output $_karst_status").good() == "0"


def test_functions(core: Path, directory: Path) -> None:
    told = Target.core(core, "-e", DEBUGGED)
    commands = ["thread 1", "frame function handle_request", "output/x (long) buf", "output $_karst_size(buf)",
                "output $_karst_usable(buf + 7)", "output/x $_karst_start(buf + 9)", "output $_karst_state(buf)",
                "output $_karst_arena(buf)", "output $_karst_arena(freed_list)", "output $_karst_size(&buf)",
                "output $_karst_state(&buf)", "output $_karst_start(16)", "output $_karst_usable(0)",
                "output $_streq($_karst_state(buf), \"live\")", "output $_karst_size(request.buffer) > 4096"]
    said = {command: gdb_said.text for command, gdb_said in
            zip(commands, gdb([DEBUGGED, core], commands, directory).said)}
    address = said["output/x (long) buf"]
    block = told.json("block", address)["block"]
    assert said["output $_karst_size(buf)"] == str(block["size"])
    assert said["output $_karst_usable(buf + 7)"] == str(block["usable"])
    assert said["output/x $_karst_start(buf + 9)"] == address
    assert said["output $_karst_state(buf)"] == '"live"'
    assert said["output $_karst_arena(buf)"] == '"main"'
    assert said["output $_karst_arena(freed_list)"] == '"mapped"'
    assert said["output $_karst_size(&buf)"] == "0"
    assert said["output $_karst_state(&buf)"] == '"none"'
    assert said["output $_karst_start(16)"] == "0"
    assert said["output $_karst_usable(0)"] == "0"
    assert said['output $_streq($_karst_state(buf), "live")'] == "1"
    assert said["output $_karst_size(request.buffer) > 4096"] == "1"


def test_function_in_a_condition(directory: Path) -> None:
    commands = ["break use_block if $_karst_usable(block) > 1000", "run loop", "output size",
                "output $_karst_state(block)", "continue", "output size", "kill"]
    answers = gdb([DEBUGGED], commands, directory)
    sizes = [int(said.good()) for said in answers.all("output size")]
    # malloc(1000) gives 1,000 usable bytes, the next size, 1,100, is the first that gives more.
    assert sizes == [1100, 1200]
    assert answers.of("output $_karst_state(block)").good() == '"live"'


def test_condition_sees_each_hit(directory: Path) -> None:
    """Between the hits of a condition that is false GDB tells of no run; the heap has grown all the same."""
    commands = ["break use_block if $_karst_usable(block) < size || size == 4000", "run loop", "output size", "kill"]
    answers = gdb([DEBUGGED], commands, directory)
    assert answers.of("output size").good() == "4000"


def test_variables_that_hold_a_block(core: Path, directory: Path) -> None:
    commands = []
    for thread in (1, 2, 3):
        commands += [f"thread {thread}", "frame function handle_request"]
        commands += [f"karst block {name}" for name in ("buf", "request.buffer", "list[2]")]
        commands += ["info frame", "thread"]
    answers = gdb([DEBUGGED, core], commands, directory)
    for name in ("buf", "request.buffer", "list[2]"):
        texts = [said.good() for said in answers.all(f"karst block {name}")]
        assert len(texts) == 3
        for thread, text in enumerate(texts, 1):
            holders = re.findall(r"thread (\d+), frame (\d+), (.*) in (\w+)", text)
            assert [(holder[0], holder[2], holder[3]) for holder in holders] == \
                [(str(thread), name, "handle_request")], text
            assert f"Stack level {holders[0][1]}," in answers.all("info frame")[thread - 1].good()
            assert f"thread is {thread} " in answers.all("thread")[thread - 1].good(), "the selection was lost"


def test_refs_name_variables(core: Path, directory: Path) -> None:
    answers = gdb([DEBUGGED, core], ["thread 2", "frame function handle_request", "karst refs buf", "karst refs kept"],
                  directory)
    assert "thread 2, frame 3, buf in handle_request" in answers.of("karst refs buf").good()
    assert "variables that point into it" not in answers.of("karst refs kept").good()


def test_typed_values(directory: Path) -> None:
    commands = ["run", "frame function main", "karst blocks --type geometry::Box --json",
                "karst blocks --type geometry::Circle<int> --json", "karst blocks --type Plain --json",
                "output/x (long) first_box", "output/x (long) plain", "karst block first_box", "output $__.width",
                "karst block &referenced", "karst block plain --type Plain", "output $__.number",
                "karst block shapes._M_impl", "karst block referenced"]
    answers = gdb([SHAPES], [*commands, "kill"], directory)

    def addresses(command: str) -> list[str]:
        return [row["address"] for row in answers.of(command).json()["blocks"]]

    boxes = addresses(commands[2])
    assert len(boxes) == 3 and answers.of("output/x (long) first_box").good() in boxes
    assert len(addresses(commands[3])) == 5
    assert answers.of("output/x (long) plain").good() in addresses(commands[4])
    text = answers.of("karst block first_box").good()
    assert "geometry::Box (by its vtable) = {" in text and "width = 4" in text
    assert answers.of("output $__.width").good() == "4"
    assert "object" not in answers.of("karst block &referenced").good()
    assert "Plain = {number = 42" in answers.of("karst block plain --type Plain").good()
    assert answers.of("output $__.number").good() == "42"
    assert "give a pointer" in answers.of("karst block referenced").one_line()


# ---- settings, help, completion -----------------------------------------------------------------------


def test_settings(core: Path, directory: Path) -> None:
    commands = ["show karst", "set karst count 3", "show karst count", "karst blocks --json",
                "karst blocks --limit 2 --json", "set karst count 0", "set karst count 200", "karst blocks --json",
                "karst info --json", "set karst symbols off",
                "karst info --json", "with karst symbols on -- karst info --json", "set karst color maybe"]
    answers = gdb([DEBUGGED, core], commands, directory)
    shown = answers.of("show karst").good()
    for said in ("20 rows", '"auto"', "uses symbols", str(BUILD / "libkarst.so")):
        assert said in shown
    few, many = (said.json() for said in answers.all("karst blocks --json"))
    assert len(few["blocks"]) == 3 and len(many["blocks"]) == 200
    assert "at least one" in answers.of("set karst count 0").one_line()
    assert len(answers.of("karst blocks --limit 2 --json").json()["blocks"]) == 2
    with_symbols, without = (said.good() for said in answers.all("karst info --json"))
    assert "by symbol" in with_symbols and "by symbol" not in without
    assert answers.of("with karst symbols on -- karst info --json").good() == with_symbols
    assert "maybe" in answers.of("set karst color maybe").one_line()


def test_help(core: Path, directory: Path) -> None:
    commands = ["help karst", "help karst blocks", "karst blocks --help", "help function _karst_state", "apropos karst"]
    answers = gdb([], commands, directory)
    listed = answers.of("help karst").good()
    for verb in ("summary", "blocks", "check", "holes"):
        assert re.search(rf"^karst {verb} -- [A-Z].*\.$", listed, re.MULTILINE), listed
    assert answers.of("help karst blocks").good() == answers.of("karst blocks --help").good()
    assert "--type TYPE" in answers.of("help karst blocks").good()
    assert "Usage: $_karst_state (ADDRESS)" in answers.of("help function _karst_state").good()
    assert "karst pins" in answers.of("apropos karst").good()


def all_completions(texts: Sequence[str], target: Sequence[str | os.PathLike[str]], directory: Path) -> list[list[str]]:
    # By -ex: gdb.execute() cuts the last space off.
    asked = [word for text in texts for word in ("-ex", "echo begin\\n", "-ex", f"complete {text}")]
    said = gdb_plain(["-ex", f"source {PLUGIN}", *map(os.fspath, target), *asked], directory)
    return [[line for line in part.splitlines() if line.startswith(text.split()[0])]
            for text, part in zip(texts, said.split("begin\n")[1:])]


def completions(text: str, target: Sequence[str | os.PathLike[str]], directory: Path) -> list[str]:
    return all_completions([text], target, directory)[0]


@pytest.mark.parametrize("text, among", [
    ("karst bl", ["karst block", "karst blocks"]),
    ("karst blocks --st", ["karst blocks --state"]),
    ("karst blocks --", ["karst blocks --json", "karst blocks --type", "karst blocks --skip"]),
    ("karst blocks --state l", ["karst blocks --state live"]),
    ("karst blocks -s ca", ["karst blocks -s cached"]),
    ("karst blocks --sort ", ["karst blocks --sort address", "karst blocks --sort size"]),
    ("karst blocks --arena ma", ["karst blocks --arena main"]),
    ("karst bins ma", ["karst bins main"]),
    ("karst blocks --bin tca", ["karst blocks --bin tcache"]),
    ("karst block kep", ["karst block kept"]),
    ("karst refs kept->buf", ["karst refs kept->buffer"]),
    ("karst blocks --from kep", ["karst blocks --from kept"]),
    ("set karst sy", ["set karst symbols"]),
    ("set karst color ", ["set karst color auto", "set karst color off", "set karst color on"]),
])
def test_completion(core: Path, directory: Path, text: str, among: list[str]) -> None:
    found = completions(text, [DEBUGGED, core], directory)
    assert set(among) <= set(found), found
    assert all(line.startswith(text) for line in found), found


def test_completion_of_files(directory: Path) -> None:
    (directory / "pictures").mkdir()
    (directory / "pictures" / "a-b.png").touch()
    starts = ["karst map --output ", "karst map --rows 3 -o ", "karst run --mark -- "]
    wanted = [[f"{start}{path}"] for start in starts for path in (f"{directory}/pictures/", "pictures/a-b.png")]
    asked = [f"{start}{path}" for start in starts for path in (f"{directory}/pict", "pictures/a-")]
    assert all_completions(asked, [DEBUGGED], directory) == wanted


def test_completion_of_traps(directory: Path) -> None:
    wanted = {
        "karst trap add mem": ["karst trap add memalign"],
        "karst trap add malloc,cal": ["karst trap add malloc,calloc"],
        "karst trap add malloc 100 sk": ["karst trap add malloc 100 skip="],
        "karst trap add double": ["karst trap add double-free"],
        "karst trap add free freed=bloc": ["karst trap add free freed=block", "karst trap add free freed=blocks"],
        "karst trap remove ": ["karst trap remove 1", "karst trap remove 2"],
        "karst trap list --": ["karst trap list --json"],
        "karst run --re": ["karst run --recorder", "karst run --recorder-dir"],
        "karst inject --ma": ["karst inject --mark"],
    }
    steps = ["break use_block", "run loop", "karst trap add malloc 123456789", "karst trap add free freed=block"]
    found = all_completions(list(wanted), [DEBUGGED, *[word for step in steps for word in ("-ex", step)]], directory)
    assert dict(zip(wanted, found)) == wanted


def test_completion_without_a_process(directory: Path) -> None:
    assert completions("karst blocks --arena ", [], directory) == []


# ---- the terminal -------------------------------------------------------------------------------------


class Terminal:
    """A GDB on a terminal of its own, as a person has it."""

    PROMPT = "(gdb) "

    def __init__(self, words: Sequence[str | os.PathLike[str]], directory: Path) -> None:
        master, slave = pty.openpty()
        self.master = master
        environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "INPUTRC": os.devnull,
                       "HOME": str(directory)}
        environment.pop("NO_COLOR", None)
        more = ["-iex", "set height 0", "-iex", "set width 100", "-ex", f"source {PLUGIN}"]
        self.process = subprocess.Popen(
            [*BASE, *more, *map(os.fspath, words)], stdin=slave, stdout=slave, stderr=slave,
            cwd=directory, env=environment, start_new_session=True)
        os.close(slave)
        self.read_until(self.PROMPT)

    def read_until(self, end: str, seconds: float = SECONDS) -> str:
        text, stop = "", time.monotonic() + seconds
        while not plain(text).endswith(end):
            left = stop - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise TimeoutError(f"GDB did not come to {end!r}: {text[-2000:]!r}")
            text += os.read(self.master, 65536).decode(errors="replace")
        return text

    def type(self, line: str, end: str = PROMPT) -> str:
        """What follows a line."""
        os.write(self.master, line.encode() + b"\n")
        return self.read_until(end)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=20)
        os.close(self.master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]", "", text)


@pytest.fixture
def terminal(core: Path, directory: Path):
    opened = Terminal([DEBUGGED, core], directory)
    yield opened
    opened.close()


def block_addresses(text: str) -> list[str]:
    return re.findall(r"^(0x[0-9a-f]+) ", plain(text).replace("\r", ""), re.MULTILINE)


def test_enter_goes_on(terminal: Terminal, core: Path) -> None:
    told = [row["address"] for row in
            Target.core(core, "-e", DEBUGGED).json("blocks", "--state", "live", "--limit", "100")["blocks"]]
    assert block_addresses(terminal.type("karst blocks --state live")) == told[:20]
    assert block_addresses(terminal.type("")) == told[20:40]
    assert block_addresses(terminal.type("")) == told[40:60]
    assert block_addresses(terminal.type("karst blocks --state live")) == told[:20], "typed again: from the start"
    assert block_addresses(terminal.type("karst blocks --state live -n 5")) == told[:5]
    assert block_addresses(terminal.type("")) == told[5:10]
    assert block_addresses(terminal.type("karst blocks --state live -n 5 --skip 50")) == told[50:55]
    assert block_addresses(terminal.type("")) == told[55:60]
    first = terminal.type("karst summary")
    assert "glibc" in plain(first)
    assert "glibc" not in plain(terminal.type("")), "Enter does not walk the heap again"


def test_styles_follow_gdb(terminal: Terminal) -> None:
    assert "\x1b[34m0x" in terminal.type("karst blocks --limit 2")
    terminal.type("set style address foreground magenta")
    assert "\x1b[35m0x" in terminal.type("karst blocks --limit 2")
    for off in ("set style enabled off", "set karst color off"):
        terminal.type(off)
        assert "\x1b[3" not in terminal.type("karst blocks --limit 2")
    terminal.type("set karst color on")
    assert "\x1b[35m0x" in terminal.type("karst blocks --limit 2")


def test_pipes_get_plain_text(terminal: Terminal) -> None:
    text = terminal.type("pipe karst blocks --limit 2 | cat -v | sed 's/^/piped /'")
    assert re.search(r"^piped 0x[0-9a-f]+ ", plain(text).replace("\r", ""), re.MULTILINE), text
    assert "^[" not in text


def test_pages(core: Path, directory: Path) -> None:
    terminal = Terminal([DEBUGGED, core], directory)
    try:
        terminal.type("set height 12")
        more = "--Type <RET> for more, q to quit, c to continue without paging--"
        first = terminal.type("karst blocks --all", end=more)
        assert 5 < len(block_addresses(first)) < 12
        text = terminal.type("q")
        assert not block_addresses(text) and "Quit" in plain(text)
        assert "glibc" in plain(terminal.type("karst summary", end=more)), "all is well after it"
    finally:
        terminal.close()


# ---- interrupts ----------------------------------------------------------------------------------------


def test_interrupt_in_the_middle(directory: Path) -> None:
    """SIGINT comes when the first line was read of millions; GDB stays whole and goes on."""
    with started([DEBUGGED, "many", "1500000"], directory) as program:
        words = [*BASE, "-batch", "-ex", f"source {PLUGIN}", "-p", str(program.pid), "-ex", "echo begins\\n",
                 "-ex", "karst blocks --all --json", "-ex", "echo ends\\n", "-ex", "karst blocks --limit 1 --json",
                 "-ex", "print $_karst_size($_)", "-ex", "info threads"]
        gdb_process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True, cwd=directory)
        assert gdb_process.stdout is not None
        lines: list[str] = []
        for line in gdb_process.stdout:
            lines.append(line)
            if line.startswith('{"address"') and sum(row.startswith('{"address"') for row in lines) == 1:
                gdb_process.send_signal(signal.SIGINT)
        assert gdb_process.wait(timeout=SECONDS) == 0
    text = "".join(lines[-12:])
    listed = sum(line.startswith('{"address"') for line in lines)
    assert 1 < listed < 1500000
    assert any(line.endswith("Quit\n") for line in lines[-12:]), text
    assert "Traceback" not in text and "Exception" not in text, text
    after = lines[lines.index("ends\n") + 1:]
    assert json.loads(after[0])["matched"] >= 1500000, "the next command works"
    assert after[1].startswith("$1 = ") and any("* 1 " in line for line in after), text


# ---- inferiors -----------------------------------------------------------------------------------------


def test_no_inferior(directory: Path) -> None:
    answers = gdb([], ["karst summary", "print $_karst_size(1)"], directory)
    for said in answers.said:
        assert "no process" in said.one_line()


def test_program_that_was_not_started(directory: Path) -> None:
    assert "no process" in gdb([DEBUGGED], ["karst summary"], directory).said[0].one_line()


def test_dead_inferior(directory: Path) -> None:
    commands = ["break use_block", "run loop", "karst summary --json", "kill", "karst summary", "print $_karst_size(1)"]
    answers = gdb([DEBUGGED], commands, directory)
    assert answers.of("karst summary --json").json()["allocators"]
    assert "no process" in answers.of("karst summary").one_line()
    assert "no process" in answers.of("print $_karst_size(1)").one_line()


def test_running_inferior(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        commands = ["karst summary --json", "continue &", "karst summary", "print $_karst_size(1)", "interrupt",
                    "python import time; time.sleep(0.5)", "detach"]
        answers = gdb(["-iex", "set pagination off", "-p", str(program.pid)], commands, directory)
    assert answers.of("karst summary --json").json()["allocators"]
    for command in ("karst summary", "print $_karst_size(1)"):
        assert answers.of(command).one_line().strip() == "the process is running: interrupt it first"


def test_answers_are_fresh(directory: Path) -> None:
    """What was learned is dropped when the program runs or its memory is changed."""
    commands = ["break use_block", "run loop", "output size", "output $_karst_usable(block)", "continue",
                "output size", "output $_karst_usable(block)", "karst check --json",
                "set var *((unsigned long *) block - 1) = 0xffffffffffffff1", "karst check --json",
                "print (char *) malloc(777)", "output $_karst_usable($)", "kill"]
    answers = gdb([DEBUGGED], commands, directory)
    sizes = [int(said.good()) for said in answers.all("output size")]
    usable = [int(said.good()) for said in answers.all("output $_karst_usable(block)")]
    assert sizes == [100, 200] and usable == [104, 200]
    healthy, damaged = (said.json() for said in answers.all("karst check --json"))
    assert healthy["healthy"] and not damaged["healthy"]
    assert answers.of("output $_karst_usable($)").good() == "792"


def test_each_inferior_has_its_own_heap(directory: Path) -> None:
    commands = ["set detach-on-fork off", "set follow-fork-mode parent", "break use_block",
                "run fork", "inferior", "output fork_result", "output $_karst_usable(block)", "inferior 2",
                "continue", "inferior 2", "output fork_result", "output $_karst_usable(block)", "karst info --json",
                "inferior 1", "karst info --json", "kill inferiors 1 2"]
    answers = gdb([DEBUGGED], commands, directory)
    parents, childs = (int(said.good()) for said in answers.all("output $_karst_usable(block)"))
    assert parents >= 11111 and childs >= 22222 and parents < 22222, answers.output
    first, second = (said.json()["target"]["pid"] for said in answers.all("karst info --json"))
    assert first != second


def test_core_after_core(core: Path, directory: Path) -> None:
    with started([DEBUGGED, "many", "1000"], directory) as program:
        other = gcore(program.pid, directory)
    commands = [f"core-file {core}", "karst summary --json", f"core-file {other}", "karst summary --json",
                "core-file", "karst summary --json"]
    answers = gdb(["-ex", f"file {DEBUGGED}"], commands, directory)
    first, second, none = answers.all("karst summary --json")
    assert first.json()["total"] != second.json()["total"]
    assert "no process" in none.one_line()


@pytest.mark.skipif(not kernel_cores_land_here(), reason="GDB's own cores have their notes at the end")
def test_truncated_core(directory: Path) -> None:
    with started([DEBUGGED], directory) as program:
        core = program.kernel_core()
    whole = core.stat().st_size
    for size in (whole - 50_000, whole * 2 // 3):  # in the stack; in the libraries
        with open(core, "r+b") as file:
            file.truncate(size)
        told = Target.core(core, "-e", DEBUGGED).run("summary", "--json")
        said, info = gdb([DEBUGGED, core], ["karst summary --json", "karst info"], directory).said
        assert "missing" in info.good()
        assert said.good() == told.stdout != ""


def test_gdbserver(directory: Path) -> None:
    """Through gdbserver: threads, variables and memory that changes."""
    with started([DEBUGGED], directory) as program, \
            gdbserver(["--attach", "127.0.0.1:0", str(program.pid)], directory) as port:
        maps = Path(f"/proc/{program.pid}/maps").read_text()
        commands = ["set karst direct off", f"target remote 127.0.0.1:{port}", "thread 3",
                    "frame function handle_request", "karst refs kept", "karst block buf",
                    "karst check --json", "set var *((unsigned long *) buf - 1) = 0xffffffffffffff1",
                    "karst check --json", "detach", "karst summary"]
        answers = gdb([DEBUGGED], commands, directory)
        assert Path(f"/proc/{program.pid}/maps").read_text() == maps, "to read the stack does not make it grow"
    assert re.search(r"thread 3, frame \d, buf in handle_request", answers.of("karst block buf").good())
    healthy, damaged = (said.json()["healthy"] for said in answers.all("karst check --json"))
    assert healthy and not damaged
    assert "no process" in answers.of("karst summary").one_line()


def test_lent_memory_around_holes(directory: Path) -> None:
    """Pieces of any size and place, in any order: the bytes up to the first page that is not there."""
    script = directory / "memory.py"
    script.write_text("""
import random, gdb
from karst_gdb import memory
chance, size = random.Random(3), 1 << 20
pages = [chance.random() < 0.8 for _ in range(size // 4096)]
content = bytes(chance.randrange(256) for _ in range(size))
mapped = [(0, 100), (100, 130), (135, 140), (141, 200), (220, 256)]  # pages
mappings = [memory.Mapping(start * 4096, end * 4096, 3) for start, end in mapped]

class Inferior:
    def read_memory(self, address, length):
        assert any(start * 4096 <= address < end * 4096 for start, end in mapped), "never outside the mappings"
        if not all(is_there(page) for page in range(address // 4096, (address + length - 1) // 4096 + 1)):
            raise gdb.MemoryError("Cannot access memory")
        return memoryview(content)[address:address + length]

def is_there(page):
    return pages[page] and any(start <= page < end for start, end in mapped)

lent = memory.Memory(Inferior(), mappings)
for turn in range(5000):
    length = chance.choice((1, 8, 100, 4096, 20000, 70000))
    address = chance.randrange(size - length - 65536)
    end = address
    while end < address + length and is_there(end // 4096):
        end = min((end | 4095) + 1, address + length)
    assert bytes(lent.read(address, length)) == content[address:end], (hex(address), length)
print("all alike")
""")
    answers = gdb([], [f"source {script}"], directory)
    assert answers.said[0].good() == "all alike\n", answers.output


def test_symbols_that_gdb_knows(core: Path, directory: Path) -> None:
    """GDB keeps the symbols that it loaded; the engine alone finds none in an empty directory."""
    commands = ["karst info --json", f"set debug-file-directory {directory}", "set karst symbols on",
                "karst info --json"]
    answers = gdb([DEBUGGED, core], commands, directory)
    alone = Target.core(core, "-e", DEBUGGED, "--debug-dir", str(directory)).json_text("info")
    assert "by symbol" not in alone
    assert "by symbol" in answers.said[-1].good() and "debug info" in answers.said[-1].good()


# ---- loading -------------------------------------------------------------------------------------------


def plugin_without_engine(directory: Path) -> Path:
    """The plugin in a place of its own, where no build is."""
    for folder in ("gdb", "helper/python"):
        shutil.copytree(ROOT / folder, directory / "there" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return directory / "there" / "gdb" / "karst.py"


def test_engine_missing(core: Path, directory: Path) -> None:
    plugin = plugin_without_engine(directory)
    text = gdb_plain(["-ex", f"source {plugin}"], directory)
    assert len(text.strip().splitlines()) == 1 and "engine" in text and "set karst engine-path" in text
    commands = ["karst summary", f"set karst engine-path {BUILD / 'libkarst.so'}", "karst summary --json",
                "show karst engine-path"]
    answers = gdb([DEBUGGED, core], commands, directory, plugin=plugin)
    assert "set karst engine-path" in answers.of("karst summary").one_line()
    assert answers.of("karst summary --json").json()["allocators"]
    assert str(BUILD) in answers.of("show karst engine-path").good()


def test_engine_of_another_version(directory: Path) -> None:
    source, library = directory / "other.c", directory / "other.so"
    source.write_text("unsigned karst_api_version(void) { return 99; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    plugin = plugin_without_engine(directory)
    answers = gdb([], [f"set karst engine-path {library}", "set karst engine-path /nothing/there", "karst"], directory,
                  plugin=plugin)
    assert "99" in answers.said[0].one_line()
    assert "/nothing/there" in answers.said[1].one_line()
    assert "/nothing/there" in answers.said[2].one_line()


def test_installed(core: Path, directory: Path) -> None:
    prefix = directory / "prefix"
    subprocess.run(["make", "-s", "install", f"PREFIX={prefix}", f"BUILD={BUILD}"], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, timeout=SECONDS)
    answers = gdb([DEBUGGED, core], ["karst summary --json", "show karst engine-path"], directory,
                  plugin=prefix / "share" / "karst" / "gdb" / "karst.py")
    assert answers.said[0].json()["allocators"]
    assert str(prefix / "lib" / "libkarst.so") in answers.said[1].good()


def test_sourced_twice(core: Path, directory: Path) -> None:
    answers = gdb([DEBUGGED, core], [f"source {PLUGIN}", "karst summary --json"], directory)
    assert answers.said[0].good() == ""
    assert answers.said[1].json()["allocators"]


def test_existing_command_stays(directory: Path) -> None:
    script = directory / "mine.gdb"
    script.write_text("define karst\n  echo mine\\n\nend\n")
    text = gdb_plain(["-x", str(script), "-ex", f"source {PLUGIN}", "-ex", "karst"], directory)
    assert "not loaded" in text and text.endswith("mine\n")


def test_load_time(directory: Path) -> None:
    """Printed, not judged: the machine may be busy."""
    def seconds(words: Sequence[str]) -> float:
        best = 1e9
        for _ in range(5):
            began = time.perf_counter()
            gdb_plain(words, directory)
            best = min(best, time.perf_counter() - began)
        return best

    print(f"\nGDB alone {seconds([]):.3f} s, with karst {seconds(['-ex', f'source {PLUGIN}']):.3f} s")


@pytest.mark.skipif("KARST_GEF" not in os.environ, reason="KARST_GEF does not name a gef.py")
def test_beside_gef(core: Path, directory: Path) -> None:
    commands = ["karst summary --json", "heap arenas", "help karst", "help heap"]
    answers = gdb(["-ex", f"source {os.environ['KARST_GEF']}", DEBUGGED, core], commands, directory)
    alone = gdb([DEBUGGED, core], ["karst summary --json"], directory)
    assert answers.of("karst summary --json").good() == alone.said[0].good()
    for command in commands[1:]:
        answers.of(command).good()


def test_narrow_terminal(directory: Path) -> None:
    """GDB's own width is kept to; what is left out for it is said."""
    with started([DEBUGGED], directory) as program:
        terminal = Terminal(["-p", str(program.pid)], directory)
        try:
            terminal.type("set width 40")
            for words in ("karst summary", "karst arenas", "karst blocks --limit 5", "karst maps"):
                said = plain(terminal.type(words)).replace("\r", "").removeprefix(words)
                assert "process" in said or "arena" in said or "address" in said, said
                assert max(map(len, said.splitlines())) <= 40, said
            assert "left out to fit" in plain(terminal.type("karst arenas"))
        finally:
            terminal.close()


def test_narrow_list_of_traps(directory: Path) -> None:
    """Nothing is left out of it without a word, and nothing at all where there is room."""
    trap = "malloc,calloc,realloc 1048576:2097152 skip=3 count=2"
    with started([DEBUGGED], directory) as program:
        terminal = Terminal(["-p", str(program.pid)], directory)
        try:
            terminal.type(f"karst trap add {trap}")
            wide = plain(terminal.type("karst trap list")).replace("\r", "")
            assert f"{trap}  on " in wide and "hits" in wide and "to fit" not in wide
            terminal.type("set width 60")
            said = plain(terminal.type("karst trap list")).replace("\r", "").removeprefix("karst trap list")
            assert max(map(len, said.splitlines())) <= 60 and "(shortened to fit; --json has all)" in said, said
            terminal.type("set width 40")
            said = plain(terminal.type("karst trap list")).replace("\r", "").removeprefix("karst trap list")
            assert max(map(len, said.splitlines())) <= 40 and "left out to fit: by, hits" in said, said
            terminal.type("karst trap remove")
        finally:
            terminal.close()
