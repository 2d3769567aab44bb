"""What is in files: reading, writing, maps, holes."""
import ctypes, errno, fcntl, hashlib, mmap, os, signal, stat, subprocess, sys

from checks import Skipped, call, check, forked, is_root, link_open_file, read, refused, same, write

PAGE = mmap.PAGESIZE
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16


def fallocate(fd, mode, offset, length):
    call("fallocate", fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


@check
def executes():
    write("script", b"#!/bin/sh\necho \"$0 $1\"\n", mode=0o755)
    same(subprocess.check_output(["./script", "x"]), b"./script x\n")
    write("interpreter", read("/bin/echo"), mode=0o755)
    write("by_it", f"#!{os.getcwd()}/interpreter -n\n".encode(), mode=0o755)
    same(subprocess.check_output(["./by_it"]), b"./by_it")
    os.chmod("interpreter", 0o644)
    with refused(errno.EACCES):
        os.execv("./interpreter", ["x"])
    os.chmod("interpreter", 0o755)
    write("sleep", read("/bin/sleep"), mode=0o755)
    with subprocess.Popen(["./sleep", "100"]) as child:
        while os.readlink(f"/proc/{child.pid}/exe") != os.path.abspath("sleep"):
            pass
        with refused(errno.ETXTBSY):
            os.open("sleep", os.O_WRONLY)
        os.unlink("sleep")
        child.kill()
    fd = os.open("script", os.O_WRONLY)
    with refused(errno.ETXTBSY):
        os.execv("./script", ["script"])
    os.close(fd)


@check
def private_maps():
    write("file", b"a" * 3 * PAGE)
    with open("file", "r+b") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as memory:
        memory[0:4] = b"mine"
        same(read("file")[0:4], b"aaaa")
        os.pwrite(file.fileno(), b"new", PAGE)
        same(memory[PAGE : PAGE + 3], b"new")
        same(memory[0:4], b"mine")
    same(read("file")[PAGE - 1 : PAGE + 4], b"anewa")


@check
def shared_maps():
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, 5 * PAGE + 100)
    memory = mmap.mmap(fd, 0)
    memory[0:5] = b"first"
    same(os.pread(fd, 5, 0), b"first")
    memory.flush()
    same(read("file")[0:5], b"first")
    os.pwrite(fd, b"second", 2 * PAGE)
    same(memory[2 * PAGE : 2 * PAGE + 6], b"second")

    def child():
        memory[3 * PAGE : 3 * PAGE + 5] = b"child"

    same(forked(child), 0)
    same(memory[3 * PAGE : 3 * PAGE + 5], b"child")
    os.close(fd)
    os.unlink("file")
    memory[5 * PAGE : 5 * PAGE + 4] = b"gone"
    memory.flush()
    same(memory[5 * PAGE : 5 * PAGE + 4], b"gone")
    memory.close()


@check
def stores_without_sync_are_in_the_file():
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, 300 * PAGE)
    before = os.fstat(fd).st_mtime_ns
    memory = mmap.mmap(fd, 0)
    os.close(fd)
    for page in range(0, 300, 7):
        memory[page * PAGE : page * PAGE + 8] = b"%08d" % page
    memory.close()
    content = read("file")
    for page in range(300):
        expected = b"%08d" % page if page % 7 == 0 else bytes(8)
        same(content[page * PAGE : page * PAGE + 8], expected)
    assert os.stat("file").st_mtime_ns >= before


@check
def maps_end_where_the_file_ends():
    write("file", b"a" * 3 * PAGE)
    with open("file", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        file.truncate(PAGE)

        def touch():
            return memory[2 * PAGE]

        same(forked(touch), -signal.SIGBUS)
        file.truncate(3 * PAGE)
        same(memory[2 * PAGE : 2 * PAGE + 4], bytes(4))
        same(memory[PAGE - 1], ord("a"))


@check
def appends():
    fd = os.open("file", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    other = os.open("file", os.O_WRONLY | os.O_APPEND)
    for number in range(50):
        os.write(fd, b"%03d." % number)
        os.write(other, b"%03d;" % number)
    same(read("file"), b"".join(b"%03d.%03d;" % (n, n) for n in range(50)))
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"end")
    same(os.lseek(fd, 0, os.SEEK_CUR), 403)
    # Linux appends by pwrite as well, whatever offset is said.
    os.pwrite(fd, b"too", 0)
    same(read("file")[-6:], b"endtoo")
    same(os.fstat(other).st_size, 406)

    def child():
        mine = os.open("many", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for _ in range(200):
            os.write(mine, b"0123456\n")

    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            child()
            os._exit(0)
        children.append(pid)
    for pid in children:
        same(os.waitpid(pid, 0)[1], 0)
    same(read("many"), b"0123456\n" * 600)


@check
def offsets():
    write("file", b"0123456789")
    fd = os.open("file", os.O_RDWR)
    twin = os.dup(fd)
    same(os.read(fd, 4), b"0123")
    same(os.read(twin, 2), b"45")
    same(forked(lambda: 0 if os.read(fd, 2) == b"67" else 1), 0)
    same(os.read(fd, 5), b"89")
    same(os.read(fd, 5), b"")
    same(os.pread(fd, 5, 100), b"")
    same(os.lseek(fd, -3, os.SEEK_END), 7)
    with refused(errno.EINVAL):
        os.lseek(fd, -1, os.SEEK_SET)
    os.pwrite(fd, b"x", 20)
    same(read("file"), b"0123456789" + bytes(10) + b"x")
    os.close(fd)
    reader = os.open("file", os.O_RDONLY)
    with refused(errno.EBADF):
        os.write(reader, b"x")
    with refused(errno.EINVAL):
        os.ftruncate(reader, 0)
    writer = os.open("file", os.O_WRONLY)
    with refused(errno.EBADF):
        os.read(writer, 1)
    same(os.writev(writer, [b"ab", b"", b"cde"]), 5)
    parts = [bytearray(2), bytearray(9)]
    same(os.preadv(reader, parts, 1), 11)
    same(bytes(parts[0] + parts[1]), b"bcde56789" + bytes(2))


@check
def truncates():
    write("file", b"a" * 10000)
    os.truncate("file", 5000)
    os.truncate("file", 9000)
    same(read("file"), b"a" * 5000 + bytes(4000))
    fd = os.open("file", os.O_RDWR)
    other = os.open("file", os.O_RDONLY)
    os.ftruncate(fd, 0)
    same(os.fstat(other).st_size, 0)
    same(os.read(other, 10), b"")
    os.write(fd, b"again")
    same(os.read(other, 10), b"again")
    os.close(os.open("file", os.O_WRONLY | os.O_TRUNC))
    same(os.fstat(fd).st_size, 0)
    with refused(errno.EINVAL):
        os.truncate("file", -1)
    os.mkdir("directory")
    with refused(errno.EISDIR):
        os.truncate("directory", 0)
    with refused(errno.EISDIR):
        os.open("directory", os.O_WRONLY)
    with refused(errno.EISDIR):
        os.read(os.open("directory", os.O_RDONLY), 1)


@check
def sparse():
    size = 1 << 40
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, size)
    os.pwrite(fd, b"middle", 1 << 30)
    about = os.fstat(fd)
    same(about.st_size, size)
    assert about.st_blocks < 1000, about.st_blocks
    same(os.pread(fd, 10, (1 << 30) - 2), bytes(2) + b"middle" + bytes(2))
    same(os.lseek(fd, 0, os.SEEK_DATA), 1 << 30)
    same(os.lseek(fd, 1 << 30, os.SEEK_HOLE), (1 << 30) + PAGE)
    same(os.lseek(fd, 5, os.SEEK_HOLE), 5)
    with refused(errno.ENXIO):
        os.lseek(fd, (1 << 30) + PAGE, os.SEEK_DATA)
    with refused(errno.ENXIO):
        os.lseek(fd, size, os.SEEK_HOLE)


@check
def allocates():
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    os.posix_fallocate(fd, 0, 1 << 20)
    about = os.fstat(fd)
    same(about.st_size, 1 << 20)
    same(about.st_blocks * 512 >= 1 << 20, True)
    fallocate(fd, KEEP_SIZE, 1 << 20, 1 << 20)
    same(os.fstat(fd).st_size, 1 << 20)
    os.pwrite(fd, b"a" * 4 * PAGE, 0)
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, PAGE, PAGE)
    fallocate(fd, ZERO_RANGE, 3 * PAGE - 10, 20)
    expected = b"a" * PAGE + bytes(PAGE) + b"a" * (PAGE - 10) + bytes(20) + b"a" * (PAGE - 10)
    same(os.pread(fd, 4 * PAGE, 0), expected)
    same(os.fstat(fd).st_size, 1 << 20)
    # FUSE passes the four above; this one may be refused, not done wrong.
    try:
        fallocate(fd, COLLAPSE_RANGE, 0, PAGE)
        same(os.pread(fd, 10, 0), bytes(10))
    except OSError as error:
        same(error.errno, errno.EOPNOTSUPP)
    with refused(errno.EINVAL):
        os.posix_fallocate(fd, 0, 0)


@check
def direct():
    size = 64 * 1024
    buffer = mmap.mmap(-1, size)
    buffer[:] = bytes(range(256)) * (size // 256)
    try:
        fd = os.open("file", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    except OSError as error:
        raise Skipped(error)
    same(os.write(fd, buffer), size)
    same(os.fstat(fd).st_size, size)
    same(read("file"), bytes(buffer))
    patch = os.open("file", os.O_WRONLY)
    os.pwrite(patch, b"patched", 4096)
    back = mmap.mmap(-1, 8192)
    same(os.preadv(fd, [back], 4096), 8192)
    same(back[0:7], b"patched")
    os.pwritev(fd, [back], 0)
    same(read("file")[0:7], b"patched")


@check
def large():
    digest = hashlib.sha256()
    block = bytes(range(251)) * 4096
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    for number in range(24):
        part = number.to_bytes(4, "big") + block
        digest.update(part)
        same(os.write(fd, part), len(part))
    size = 24 * (len(block) + 4)
    same(os.fstat(fd).st_size, size)
    again = hashlib.sha256()
    os.lseek(fd, 0, os.SEEK_SET)
    while part := os.read(fd, 999_999):
        again.update(part)
    same(again.hexdigest(), digest.hexdigest())
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as memory:
        same(hashlib.sha256(memory).hexdigest(), digest.hexdigest())
    os.close(fd)
    same(hashlib.sha256(read("file")).hexdigest(), digest.hexdigest())


@check
def copies():
    content = bytes(range(256)) * 5000
    write("from", content)
    source = os.open("from", os.O_RDONLY)
    target = os.open("to", os.O_RDWR | os.O_CREAT, 0o644)
    done = 0
    while done < len(content):
        step = os.copy_file_range(source, target, len(content) - done)
        assert step > 0
        done += step
    same(read("to"), content)
    same(os.copy_file_range(source, target, 100, offset_src=256, offset_dst=50), 100)
    same(os.pread(target, 100, 50), content[256:356])
    other = os.open("sent", os.O_RDWR | os.O_CREAT, 0o644)
    done = 0
    while done < len(content):
        done += os.sendfile(other, source, done, len(content) - done)
    same(read("sent"), content)
    reading, writing = os.pipe()
    same(os.splice(source, writing, 4096, offset_src=512), 4096)
    same(os.splice(reading, other, 4096, offset_dst=0), 4096)
    same(os.pread(other, 4096, 0), content[512:4608])


@check
def syncs():
    fd = os.open("file", os.O_RDWR | os.O_CREAT | os.O_SYNC, 0o644)
    os.write(fd, b"a" * 5000)
    os.fsync(fd)
    os.fdatasync(fd)
    call("sync_file_range", fd, ctypes.c_int64(0), ctypes.c_int64(0), 7)
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    same(os.pread(fd, 5000, 0), b"a" * 5000)


@check
def temporary_files():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"unnamed")
    about = os.fstat(fd)
    same((about.st_nlink, stat.S_IMODE(about.st_mode)), (0, 0o640))
    same(os.listdir("."), [])
    link_open_file(fd, "named")
    same(read("named"), b"unnamed")
    same(os.fstat(fd).st_nlink, 1)
    same(os.stat("named").st_ino, about.st_ino)
    os.write(fd, b", more")
    same(read("named"), b"unnamed, more")
    private = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    os.write(private, b"x" * 100)
    with refused(errno.ENOENT):
        link_open_file(private, "never")
    same(os.pread(private, 3, 97), b"xxx")


@check
def modes_at_creation():
    os.umask(0o027)
    write("file", b"", mode=0o666)
    same(stat.S_IMODE(os.stat("file").st_mode), 0o640)
    os.mkdir("directory", 0o777)
    same(stat.S_IMODE(os.stat("directory").st_mode), 0o750)
    # Open for writing though its mode forbids that: what git does with its objects.
    fd = os.open("readonly", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
    os.write(fd, b"content")
    os.fchmod(fd, 0o400)
    os.write(fd, b", more")
    os.close(fd)
    same(read("readonly"), b"content, more")
    fd = os.open("none", os.O_WRONLY | os.O_CREAT, 0)
    os.write(fd, b"x")
    os.close(fd)
    if not is_root:
        with refused(errno.EACCES):
            os.open("readonly", os.O_WRONLY)
        with refused(errno.EACCES):
            os.open("none", os.O_RDONLY)


@check
def privileged_bits_go_with_a_write():
    def modes(change):
        write("file", b"content")
        os.chmod("file", 0o6775)
        change()
        mode = stat.S_IMODE(os.stat("file").st_mode)
        os.unlink("file")
        return oct(mode)

    def mapped():
        fd = os.open("file", os.O_RDWR)
        os.write(fd, b"x")
        os.close(fd)

    # Root keeps them at a write; nobody keeps them at a change of owner.
    kept = oct(0o6775 if is_root else 0o775)
    same(modes(lambda: write("file", b"x", flags=0)), kept)
    same(modes(mapped), kept)
    same(modes(lambda: os.truncate("file", 3)), kept)
    same(modes(lambda: write("file", b"", flags=os.O_TRUNC)), kept)
    same(modes(lambda: os.chown("file", os.getuid(), os.getgid())), oct(0o775))
    same(modes(lambda: os.chmod("file", 0o4755)), oct(0o4755))
