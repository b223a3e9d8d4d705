"""Works, or sleeps, at the bottom of so many nested calls: deep.py SECONDS CALLS spin|sleep."""

import sys
import time


def spin():
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        pass


def sleep():
    time.sleep(0.01)


def nested(calls, work):
    if calls > 1:
        nested(calls - 1, work)
    else:
        work()


sys.setrecursionlimit(10_000)
print("ready", flush=True)
work = {"spin": spin, "sleep": sleep}[sys.argv[3]]
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    nested(int(sys.argv[2]), work)
