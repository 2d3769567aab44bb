"""Evaluates Python for a test: each line in is a JSON text, each line out an answer.

The functions here are the steps that many tests use.
"""
import ctypes, errno, fcntl, json, mmap, os, random, stat, struct, sys, time

kept = {}
libc = ctypes.CDLL(None, use_errno=True)


def put(path, text, mode=0o644):
    """Creates or replaces a file's content in place."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def get(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts).decode("latin-1")
    finally:
        os.close(fd)


def add(path, text):
    """Appends, by O_APPEND."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def patch(path, offset, text):
    """Writes at a place."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, text.encode(), offset)
    finally:
        os.close(fd)


def mapped_patch(path, offset, text):
    """Writes by a store to memory; the map has gone when this returns.

    A file that is open for writing elsewhere can't be mapped shared (ENODEV, V5). That a file
    was closed elsewhere is known a moment later, so there is a second chance.
    """
    deadline = time.monotonic() + 3
    while True:
        fd = os.open(path, os.O_RDWR)
        try:
            with mmap.mmap(fd, 0) as memory:
                memory[offset : offset + len(text)] = text.encode()
            return
        except OSError as error:
            if error.errno != errno.ENODEV or time.monotonic() > deadline:
                raise
        finally:
            os.close(fd)


def make(path, text):
    """Makes a file that must not exist."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def rename(old, new, flags=0):
    if flags == 0:
        return os.rename(old, new)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def opened(name, path, flags, mode=0o644):
    kept[name] = os.open(path, flags, mode)


def closed(name):
    os.close(kept.pop(name))


PROBED = [a + b for a in "abcxy" for b in ("", "/a", "/b")]


def tree(top):
    """All that can be seen below a directory, but for times: one list for each name."""
    seen = []
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(directory, name)
            try:
                about = os.lstat(path)
                kind = stat.S_IFMT(about.st_mode)
                if kind == stat.S_IFLNK:
                    content = os.readlink(path)
                elif kind == stat.S_IFREG:
                    content = get(path)
                    about = os.lstat(path)
                else:
                    content = ""
            except FileNotFoundError:
                # Listed and yet absent: shown, so that it counts as a difference.
                seen.append([os.path.relpath(path, top), "listed, but absent"])
                continue
            links = about.st_nlink if kind == stat.S_IFREG else 1
            size = about.st_size if kind != stat.S_IFDIR else 0
            seen.append([os.path.relpath(path, top), stat.S_IMODE(about.st_mode), kind, links, size, content])
    # A name that is found and yet not listed is a difference too.
    listed = {each[0] for each in seen}
    for name in PROBED:
        if name not in listed and os.path.lexists(os.path.join(top, name)):
            seen.append([name, "there, but not listed"])
    seen.sort()
    return seen


# Records of several writers to one file.

def append_records(path, who, count, size):
    """Records of `size` bytes, each by one write with O_APPEND."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(count):
        record = f"{who}:{number}:".encode().ljust(size - 1, b".") + b"\n"
        assert os.write(fd, record) == size
    os.close(fd)


def races(attempt, count, start):
    """Numbers of the races that this place has won. All places begin each at the same time, but
    for a little luck, since the head's way is shorter."""
    won = []
    for number in range(count):
        begin = start + number * 0.004 + random.random() * 0.002
        while time.time() < begin:
            pass
        try:
            attempt(number)
            won.append(number)
        except FileExistsError:
            pass
    return won


def create_exclusively(top, number):
    os.close(os.open(f"{top}/file{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def follow_versions(path, last, whole):
    """Reads a file of equal numbers until the last one is there; what went wrong meanwhile."""
    seen, wrong, count, deadline = 0, [], 0, time.monotonic() + 30
    while seen < last:
        text = get(path)
        version = int(text[:8])
        count += 1
        if version < seen:
            wrong.append(f"{version} after {seen}")
        if whole and text != text[:8] * 1000:
            wrong.append(f"torn: {text[:8]}, {text[-8:]}, {len(text)}")
        seen = max(seen, version)
        if time.monotonic() > deadline:
            wrong.append(f"still {seen}")
            break
    return {"wrong": wrong[:5], "count": count}


# Locks: of a process, of an open file, of a whole file.

OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
SHARED, EXCLUSIVE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


def record(command, fd, kind, start=0, length=0):
    wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, wanted))


def lock(style, name, kind, wait=False, start=0, length=0):
    fd = kept[name]
    if style == "flock":
        how = {SHARED: fcntl.LOCK_SH, EXCLUSIVE: fcntl.LOCK_EX, NONE: fcntl.LOCK_UN}[kind]
        fcntl.flock(fd, how | (0 if wait else fcntl.LOCK_NB))
    elif style == "ofd":
        record(OFD_SETLKW if wait else OFD_SETLK, fd, kind, start, length)
    else:
        record(fcntl.F_SETLKW if wait else fcntl.F_SETLK, fd, kind, start, length)


def holder(name, kind, start=0, length=0):
    """What F_GETLK says of who is in the way: its kind, start, length."""
    found = record(fcntl.F_GETLK, kept[name], kind, start, length)
    return [found[0], found[2], found[3]]


def count_under_lock(style, path, rounds):
    """Adds one to a number in a file, again and again, keeping others off meanwhile."""
    for _ in range(rounds):
        opened("count", path, os.O_RDWR)
        lock(style, "count", EXCLUSIVE, wait=True)
        number = int(os.pread(kept["count"], 100, 0))
        os.pwrite(kept["count"], b"%d" % (number + 1), 0)
        lock(style, "count", NONE)
        closed("count")


def count_under_lock_kept_open(style, path, rounds):
    """The same through one open file, so that only the lock says that something is new."""
    opened("count", path, os.O_RDWR)
    for _ in range(rounds):
        lock(style, "count", EXCLUSIVE, wait=True)
        number = int(os.pread(kept["count"], 100, 0))
        os.pwrite(kept["count"], b"%d" % (number + 1), 0)
        lock(style, "count", NONE)
    closed("count")


if __name__ == "__main__":
    for line in sys.stdin:
        code = json.loads(line)
        try:
            try:
                compiled = compile(code, "step", "eval")
            except SyntaxError:
                exec(compile(code, "step", "exec"), globals())
                value = None
            else:
                value = eval(compiled, globals())
            if isinstance(value, bytes):
                value = value.decode("latin-1")
            answer = {"value": value}
        except OSError as error:
            answer = {"errno": error.errno, "text": str(error)}
        except Exception as error:
            answer = {"broken": f"{type(error).__name__}: {error} in {code}"}
        print(json.dumps(answer), flush=True)
