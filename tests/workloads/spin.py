"""Spends its time in a loop that PyPy compiles: spin.py SECONDS."""

import sys
import time


def spin(turns):
    total = 0
    for turn in range(turns):
        total = (total + turn * 7) % 1000003
    return total


end = time.monotonic() + float(sys.argv[1])
print("ready", flush=True)
while time.monotonic() < end:
    spin(5_000_000)
