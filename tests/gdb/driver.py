"""Runs inside GDB: executes commands one by one and writes what each said as JSON.

KARST_COMMANDS names a file with a JSON list of commands; KARST_ANSWERS the file to write."""

import json
import os

import gdb


def execute(command: str) -> dict:
    try:
        return {"text": gdb.execute(command, False, True), "error": None}
    except gdb.error as error:
        return {"text": "", "error": str(error)}
    except KeyboardInterrupt:
        return {"text": "", "error": "Quit"}


with open(os.environ["KARST_COMMANDS"]) as file:
    commands = json.load(file)
answers = [execute(command) for command in commands]
with open(os.environ["KARST_ANSWERS"], "w") as file:
    json.dump(answers, file)
