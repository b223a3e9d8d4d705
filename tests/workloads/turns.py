"""How quickly work gets done: counts turns of a fixed length at the bottom of 20 nested calls, in each
twentieth of a second for so many seconds of wall time, after others that are not counted, and prints the
median: turns.py SECONDS BEFORE."""

import statistics
import sys
import time


def spin(seconds):
    slices = []
    end = time.monotonic()
    for _ in range(int(seconds * 20)):
        end += 1 / 20
        turns = 0
        while time.monotonic() < end:
            for _ in range(100):
                pass
            turns += 1
        slices.append(turns)
    return slices


def nested(depth, seconds):
    if depth > 1:
        return nested(depth - 1, seconds)
    return spin(seconds)


nested(20, float(sys.argv[2]))
print(statistics.median(nested(20, float(sys.argv[1]))))
