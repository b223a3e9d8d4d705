"""A thread that is busy in C while the memory with its frames cannot be read, as that of any thread while the
kernel moves its pages: python hidden.py SECONDS

CPython 3.11 and later. Prints "ready" when it is hidden.
"""

import ctypes
import hashlib
import mmap
import os
import sys
import threading
import time

# Bytes from a frame object's begin to the address of its frame (`PyFrameObject.f_frame`).
F_FRAME = 24


def busy():
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1 << 30)


thread = threading.Thread(target=busy, daemon=True)
thread.start()
time.sleep(0.5)
frame = ctypes.c_void_p.from_address(id(sys._current_frames()[thread.ident]) + F_FRAME).value
page = ctypes.c_void_p(frame & -mmap.PAGESIZE)
libc = ctypes.CDLL(None, use_errno=True)
# Protection 0: neither reading nor writing.
if libc.mprotect(page, mmap.PAGESIZE, 0):
    raise OSError(ctypes.get_errno(), "mprotect")
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
os._exit(0)
