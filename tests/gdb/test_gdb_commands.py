"""Arguments, errors, repetition, completion, values and settings of karst in GDB."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from gdb_runner import PLUGIN, Said, gdb, gdb_plain
from karst_command import BUILD, TESTS, Target

DEBUGGED = TESTS / "debugged"
SHAPES = TESTS / "shapes"


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
