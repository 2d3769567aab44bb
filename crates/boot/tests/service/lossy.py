"""A cable that loses one packet in fifty: between two taps, whose names are the arguments."""

import fcntl
import os
import random
import select
import struct
import sys

TUNSETIFF = 0x400454CA
IFF_TAP_WITHOUT_HEADER = 0x0002 | 0x1000


def tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_WITHOUT_HEADER))
    return fd


near, far = (tap(name) for name in sys.argv[1:])
print("ready", flush=True)
chance = random.Random(1)
while True:
    for fd in select.select([near, far], [], [])[0]:
        frame = os.read(fd, 65536)
        if chance.randrange(50):
            try:
                os.write(far if fd == near else near, frame)
            except OSError:
                pass  # That end is not up yet.
