"""What processes of one machine have with each other through files."""
import ctypes, errno, fcntl, os, select, socket, stat, struct, subprocess, sys, time

from checks import Skipped, call, check, forked, is_root, read, refused, same, write

OFD_SETLK, OFD_SETLKW = 37, 38


def record(command, fd, kind, start=0, length=0):
    wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, wanted))


@check
def fifos():
    os.mkfifo("fifo", 0o600)
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    with refused(errno.ENXIO):
        os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    pid = os.fork()
    if pid == 0:
        fd = os.open("fifo", os.O_WRONLY)
        for number in range(100):
            os.write(fd, b"%03d\n" % number)
        os._exit(0)
    with open("fifo", "rb") as reader:
        same(reader.read(), b"".join(b"%03d\n" % number for number in range(100)))
    same(os.waitpid(pid, 0)[1], 0)


@check
def sockets():
    # Python is told a short path, since sun_path has but 108 bytes.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    listener.listen()
    assert stat.S_ISSOCK(os.stat("socket").st_mode)
    with refused(errno.EADDRINUSE):
        socket.socket(socket.AF_UNIX).bind("socket")
    pid = os.fork()
    if pid == 0:
        client = socket.socket(socket.AF_UNIX)
        client.connect("socket")
        client.sendall(b"hello")
        os._exit(0 if client.recv(10) == b"welcome" else 1)
    peer, _ = listener.accept()
    same(peer.recv(10), b"hello")
    peer.sendall(b"welcome")
    same(os.waitpid(pid, 0)[1], 0)
    os.rename("socket", "moved")
    socket.socket(socket.AF_UNIX).connect("moved")
    os.unlink("moved")
    with refused(errno.ENOENT):
        socket.socket(socket.AF_UNIX).connect("moved")


@check
def record_locks():
    write("file", b"x" * 100)
    fd = os.open("file", os.O_RDWR)
    record(fcntl.F_SETLK, fd, fcntl.F_WRLCK, 10, 20)

    def other(kind, start, length):
        mine = os.open("file", os.O_RDWR)
        record(fcntl.F_SETLK, mine, kind, start, length)

    denied = (errno.EAGAIN, errno.EACCES)
    assert forked(lambda: other(fcntl.F_RDLCK, 29, 1)) in denied
    same(forked(lambda: other(fcntl.F_WRLCK, 30, 5)), 0)
    same(forked(lambda: other(fcntl.F_WRLCK, 0, 10)), 0)
    record(fcntl.F_SETLK, fd, fcntl.F_UNLCK, 15, 5)
    same(forked(lambda: other(fcntl.F_WRLCK, 15, 5)), 0)
    assert forked(lambda: other(fcntl.F_WRLCK, 20, 1)) in denied
    record(fcntl.F_SETLK, fd, fcntl.F_RDLCK, 10, 5)
    same(forked(lambda: other(fcntl.F_RDLCK, 10, 5)), 0)

    def ask():
        mine = os.open("file", os.O_RDWR)
        kind, _, start, length, pid = record(fcntl.F_GETLK, mine, fcntl.F_WRLCK, 0, 0)
        return 0 if (kind, start, length) == (fcntl.F_RDLCK, 10, 5) else 1

    same(forked(ask), 0)
    # Any close of the file by this process gives its locks up.
    os.close(os.open("file", os.O_RDONLY))
    same(forked(lambda: other(fcntl.F_WRLCK, 0, 0)), 0)
    reader = os.open("file", os.O_RDONLY)
    with refused(errno.EBADF):
        record(fcntl.F_SETLK, reader, fcntl.F_WRLCK)


@check
def waiting_for_locks():
    write("file", b"")
    for take, drop in (
        (lambda fd, wait: record(fcntl.F_SETLKW if wait else fcntl.F_SETLK, fd, fcntl.F_WRLCK),
         lambda fd: record(fcntl.F_SETLK, fd, fcntl.F_UNLCK)),
        (lambda fd, wait: record(OFD_SETLKW if wait else OFD_SETLK, fd, fcntl.F_WRLCK),
         lambda fd: record(OFD_SETLK, fd, fcntl.F_UNLCK)),
        (lambda fd, wait: fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)),
         lambda fd: fcntl.flock(fd, fcntl.LOCK_UN)),
    ):
        fd = os.open("file", os.O_RDWR)
        take(fd, False)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(fd)
            mine = os.open("file", os.O_RDWR)
            take(mine, True)
            os.write(writing, b"got it")
            os._exit(0)
        same(select.select([reading], [], [], 0.1)[0], [])
        drop(fd)
        same(select.select([reading], [], [], 10)[0], [reading])
        same(os.waitpid(pid, 0)[1], 0)
        # The waiter's end gave it up.
        take(fd, False)
        # A waiter can be killed.
        pid = os.fork()
        if pid == 0:
            mine = os.open("file", os.O_RDWR)
            take(mine, True)
            os._exit(0)
        time.sleep(0.05)
        os.kill(pid, 9)
        same(os.waitpid(pid, 0)[1], 9)
        drop(fd)
        os.close(fd)


@check
def locks_of_open_files():
    write("file", b"")
    one, two = os.open("file", os.O_RDWR), os.open("file", os.O_RDWR)
    record(OFD_SETLK, one, fcntl.F_WRLCK, 0, 10)
    with refused(errno.EAGAIN):
        record(OFD_SETLK, two, fcntl.F_RDLCK, 5, 1)
    record(OFD_SETLK, two, fcntl.F_RDLCK, 10, 1)
    twin = os.dup(one)
    os.close(one)
    with refused(errno.EAGAIN):
        record(OFD_SETLK, two, fcntl.F_RDLCK, 5, 1)
    os.close(twin)
    record(OFD_SETLK, two, fcntl.F_WRLCK)
    # A process's lock and an open file's are in each other's way.
    three = os.open("file", os.O_RDWR)
    with refused(errno.EAGAIN, errno.EACCES):
        record(fcntl.F_SETLK, three, fcntl.F_WRLCK)


@check
def whole_file_locks():
    write("file", b"")
    one, two = os.open("file", os.O_RDONLY), os.open("file", os.O_RDONLY)
    fcntl.flock(one, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with refused(errno.EAGAIN):
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(two, fcntl.LOCK_UN)
    fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with refused(errno.EAGAIN):
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    # It goes with the last descriptor of the open file, not with the first.
    pid = os.fork()
    if pid == 0:
        time.sleep(0.2)
        os._exit(0)
    os.close(one)
    with refused(errno.EAGAIN):
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.waitpid(pid, 0)
    fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # The two kinds of locks do not see each other.
    three = os.open("file", os.O_RDWR)
    record(fcntl.F_SETLK, three, fcntl.F_WRLCK)
    directory = os.open(".", os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with refused(errno.EAGAIN):
        fcntl.flock(os.open(".", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


@check
def notification():
    MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
    fd = call("inotify_init1", os.O_NONBLOCK)
    call("inotify_add_watch", fd, b".", MODIFY | MOVED_FROM | MOVED_TO | CREATE | DELETE)

    def change():
        write("file", b"content")
        os.rename("file", "moved")
        os.unlink("moved")

    same(forked(change), 0)
    seen, buffer = [], os.read(fd, 65536)
    while buffer:
        _, mask, _, length = struct.unpack_from("iIII", buffer)
        seen.append((mask, buffer[16 : 16 + length].rstrip(b"\0")))
        buffer = buffer[16 + length :]
    for event in ((CREATE, b"file"), (MODIFY, b"file"), (MOVED_FROM, b"file"), (MOVED_TO, b"moved"), (DELETE, b"moved")):
        assert event in seen, (event, seen)


@check
def programs_of_the_shell():
    script = """
    set -e
    mkdir -p a/b; seq 1000 > a/b/numbers; cp -a a c; diff -r a c
    tar cf t.tar a; mkdir x; tar xf t.tar -C x; diff -r a x/a
    sed -i s/^7$/seven/ a/b/numbers; grep -c seven a/b/numbers
    sort -rn a/b/numbers | head -1; find . -name numbers | wc -l
    ln -s a/b/numbers l; wc -l < l; mv a z; test ! -e l; rm -r x c; ls | tr '\\n' ' '
    touch -d '2001-02-03 04:05:06.789' old; find . -not -newer old -name old
    dd if=/dev/zero of=zeros bs=4k count=10 conv=fsync 2>/dev/null; stat -c %s zeros
    """
    expected = "1\n1000\n3\n1000\nl t.tar z ./old\n40960\n"
    same(subprocess.check_output(["sh", "-c", script], text=True), expected)
