"""Spends CPU time 50, 30 and 20 parts under three functions, each at the bottom of 20 nested calls:
split.py SECONDS."""

import sys
import time


# What a turn took too long is taken off the next one.
owed_ns = [0, 0, 0]


def spin(which, ns):
    begin = time.thread_time_ns()
    owed_ns[which] += ns
    used_ns = turns = 0
    while used_ns < owed_ns[which]:
        for _ in range(50):
            turns += 1
        used_ns = time.thread_time_ns() - begin
    owed_ns[which] -= used_ns
    return turns


def nest_fifty(depth):
    if depth > 1:
        return nest_fifty(depth - 1)
    return spin(0, 5_000_000)


def nest_thirty(depth):
    if depth > 1:
        return nest_thirty(depth - 1)
    return spin(1, 3_000_000)


def nest_twenty(depth):
    if depth > 1:
        return nest_twenty(depth - 1)
    return spin(2, 2_000_000)


end = time.monotonic() + float(sys.argv[1])
print("ready", flush=True)
while time.monotonic() < end:
    nest_fifty(20)
    nest_thirty(20)
    nest_twenty(20)
