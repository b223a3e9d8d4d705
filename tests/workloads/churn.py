"""Functions that live for some milliseconds, each of a name and a file of its own: churn.py SECONDS."""

import sys
import time


def spin(ns):
    end = time.thread_time_ns() + ns
    while time.thread_time_ns() < end:
        pass


def once(number):
    name = f"churn_{number:06d}"
    source = f"def {name}(spin):\n    spin(3_000_000)\n"
    functions = {}
    exec(compile(source, f"<{name}>", "exec"), functions)
    functions[name](spin)
    # Every other one is gone at once; the rest waits for the garbage collector.
    if number % 2:
        functions.clear()


end = time.monotonic() + float(sys.argv[1])
print("ready", flush=True)
number = 0
while time.monotonic() < end:
    number += 1
    once(number)
