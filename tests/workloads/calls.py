"""Calls of every kind, native ones between: calls.py SECONDS THREADS. Who calls whom is listed in
tests/python_profile.rs."""

import asyncio
import functools
import json
import re
import sys
import threading
import time


def spin(ns):
    end = time.thread_time_ns() + ns
    while time.thread_time_ns() < end:
        for _ in range(50):
            pass


class Item:
    def __init__(self, value):
        self.value = value
        by_constructor()

    def __lt__(self, other):
        by_operator()
        return self.value < other.value

    @property
    def doubled(self):
        spin(100_000)
        return self.value * 2

    @classmethod
    def made(cls):
        spin(100_000)


def by_constructor():
    spin(50_000)


def by_operator():
    spin(50_000)


def by_sorted(value):
    spin(100_000)
    return -value


def by_reduce(one, other):
    spin(100_000)
    return one + other


def by_json(value):
    spin(500_000)
    return str(value)


def by_re(match):
    spin(100_000)
    return ""


def generator():
    for value in range(10):
        spin(100_000)
        yield value


def delegating():
    yield from generator()


async def awaited():
    spin(500_000)


async def task():
    await awaited()
    await asyncio.sleep(0)
    await awaited()


async def numbers():
    for value in range(3):
        spin(200_000)
        yield value


async def all_tasks():
    await asyncio.gather(task(), task())
    async for _ in numbers():
        pass


def with_closure():
    def closure():
        spin(1_000_000)

    return closure


def decorator(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


@decorator
def decorated():
    spin(1_000_000)


def caught():
    try:
        return raising()
    except ValueError:
        spin(300_000)


def raising():
    spin(300_000)
    raise ValueError


def recursive(depth):
    if depth == 0:
        return spin(500_000)
    # Through C each time: the native stack grows as well.
    return list(map(recursive, [depth - 1]))


# What `eval` compiles itself is gone before anybody can read it.
EVALUATED = compile("spin(300_000)", "<string>", "eval")


def all_calls():
    sorted(range(10), key=by_sorted)
    items = [Item(value) for value in range(5)]
    sorted(items)
    items[0].doubled
    Item.made()
    functools.reduce(by_reduce, range(10))
    json.dumps([object()], default=by_json)
    sum(value for value in delegating())
    re.sub("a", by_re, "aaaaa")
    asyncio.run(all_tasks())
    with_closure()()
    decorated()
    caught()
    recursive(12)
    list(map(lambda _: spin(100_000), range(5)))
    eval(EVALUATED)


def worker(end):
    while time.monotonic() < end:
        all_calls()


end = time.monotonic() + float(sys.argv[1])
threads = [threading.Thread(target=worker, args=(end,)) for _ in range(int(sys.argv[2]))]
print("ready", flush=True)
for thread in threads:
    thread.start()
worker(end)
for thread in threads:
    thread.join()
