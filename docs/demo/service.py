"""A small service in Python for the pages of the verbs: it has parsed some records, kept a few of them, and
now waits for work. Prints the addresses of some objects, then "ready"."""

import sys
import threading
import time


class Record:
    def __init__(self, number: int) -> None:
        self.number = number
        self.title = f"record {number:,}"
        self.tags = ["open", f"by {number % 7}"]


class Store:
    def __init__(self) -> None:
        self.kept: dict[int, Record] = {}
        self.text = ""

    def load(self, count: int, keep_each: int) -> None:
        records = [Record(number) for number in range(count)]
        for record in records[::keep_each]:
            self.kept[record.number] = record
        self.text = "\n".join(record.title for record in records)


def worker(store: Store, wake: threading.Event) -> None:
    handled = 0
    while not wake.wait():
        handled += 1


def serve(store: Store, wake: threading.Event) -> None:
    def by_title(record: Record) -> str:
        if record.number == 0:
            announce(store)
            print("ready", flush=True), time.sleep(1000)
        return record.title

    sorted(store.kept.values(), key=by_title)
    wake.set()


def announce(store: Store) -> None:
    some = store.kept[7000]
    for name, thing in (("store", store), ("record", some), ("title", some.title), ("text", store.text)):
        print(name, hex(id(thing)))


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    store, wake = Store(), threading.Event()
    store.load(20000, keep_each=500)
    threading.Thread(target=worker, args=(store, wake), name="worker", daemon=True).start()
    time.sleep(0.3)
    serve(store, wake)


if __name__ == "__main__":
    main()
