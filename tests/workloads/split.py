"""Spends CPU time 50, 30 and 20 parts under three functions, each at the bottom of 20 nested calls:
split.py SECONDS."""

import sys
import time


def spin(ns):
    end = time.thread_time_ns() + ns
    turns = 0
    while time.thread_time_ns() < end:
        for _ in range(50):
            turns += 1
    return turns


def nest_fifty(depth):
    if depth > 1:
        return nest_fifty(depth - 1)
    return spin(5_000_000)


def nest_thirty(depth):
    if depth > 1:
        return nest_thirty(depth - 1)
    return spin(3_000_000)


def nest_twenty(depth):
    if depth > 1:
        return nest_twenty(depth - 1)
    return spin(2_000_000)


end = time.monotonic() + float(sys.argv[1])
print("ready", flush=True)
while time.monotonic() < end:
    nest_fifty(20)
    nest_thirty(20)
    nest_twenty(20)
