"""Names of files, what is known of them, and who may do what."""
import ctypes, errno, os, shutil, stat, subprocess, threading, time

from checks import Skipped, call, check, forked, is_root, link_open_file, read, refused, same, write

NOREPLACE, EXCHANGE = 1, 2


def rename(old, new, flags):
    call("renameat2", -100, os.fsencode(old), -100, os.fsencode(new), flags)


@check
def exclusive_creation():
    fd = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.close(fd)
    with refused(errno.EEXIST):
        os.open("file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.symlink("nowhere", "dangling")
    with refused(errno.EEXIST):
        os.open("dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with refused(errno.ELOOP):
        os.open("dangling", os.O_RDONLY | os.O_NOFOLLOW)
    with refused(errno.ENOENT):
        os.open("dangling", os.O_RDONLY)
    with refused(errno.ENOTDIR):
        os.open("file", os.O_RDONLY | os.O_DIRECTORY)
    with refused(errno.ENOTDIR):
        os.stat("file/x")
    with refused(errno.EEXIST):
        os.mkdir("file")
    os.close(os.open("dangling", os.O_WRONLY | os.O_CREAT, 0o644))
    same(sorted(os.listdir(".")), ["dangling", "file", "nowhere"])


@check
def hard_links():
    write("one", b"content")
    os.link("one", "two")
    os.mkdir("directory")
    os.link("two", "directory/three")
    same([os.stat(name).st_nlink for name in ("one", "two", "directory/three")], [3, 3, 3])
    same(len({os.stat(name).st_ino for name in ("one", "two", "directory/three")}), 1)
    write("two", b"changed")
    same(read("directory/three"), b"changed")
    os.chmod("one", 0o600)
    same(stat.S_IMODE(os.stat("two").st_mode), 0o600)
    changed = os.stat("one").st_ctime_ns
    time.sleep(0.02)
    os.unlink("two")
    same(os.stat("one").st_nlink, 2)
    assert os.stat("directory/three").st_ctime_ns > changed
    with refused(errno.EEXIST):
        os.link("one", "directory/three")
    with refused(errno.EPERM):
        os.link("directory", "other")
    os.symlink("one", "symbolic")
    os.link("symbolic", "also", follow_symlinks=False)
    assert stat.S_ISLNK(os.lstat("also").st_mode)
    fd = os.open("one", os.O_RDONLY)
    os.unlink("one")
    os.unlink("directory/three")
    same(os.fstat(fd).st_nlink, 0)
    with refused(errno.ENOENT):
        link_open_file(fd, "again")


@check
def symbolic_links():
    os.mkdir("directory")
    write("directory/file", b"content")
    os.symlink("directory", "link")
    same(read("link/file"), b"content")
    same(os.readlink("link"), "directory")
    same(os.lstat("link").st_size, 9)
    same(stat.S_IMODE(os.lstat("link").st_mode), 0o777)
    os.symlink("../link/file", "directory/around")
    same(read("directory/around"), b"content")
    os.symlink("loop", "loop")
    with refused(errno.ELOOP):
        os.stat("loop")
    os.symlink(os.path.abspath("directory/file"), "absolute")
    same(read("absolute"), b"content")
    long = "x/" * 2047 + "y"
    os.symlink(long, "long")
    same(os.readlink("long"), long)
    with refused(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, "longer")
    os.utime("absolute", ns=(1, 2), follow_symlinks=False)
    same(os.lstat("absolute").st_mtime_ns, 2)
    assert os.stat("absolute").st_mtime_ns > 2
    with refused(errno.EINVAL):
        os.readlink("directory")
    os.unlink("link")
    os.symlink("elsewhere", "link")
    same(os.readlink("link"), "elsewhere")


@check
def renames():
    write("old", b"old")
    write("new", b"new")
    fd = os.open("new", os.O_RDWR)
    os.rename("old", "new")
    same(read("new"), b"old")
    same(os.pread(fd, 10, 0), b"new")
    same(os.fstat(fd).st_nlink, 0)
    os.pwrite(fd, b"still", 0)
    same((os.pread(fd, 10, 0), read("new")), (b"still", b"old"))
    with refused(errno.ENOENT):
        os.stat("old")
    os.makedirs("a/b/c")
    os.makedirs("full/x")
    with refused(errno.ENOTEMPTY):
        os.rename("a", "full")
    with refused(errno.EINVAL):
        os.rename("a", "a/b/c/d")
    with refused(errno.ENOTDIR):
        os.rename("a", "new")
    with refused(errno.EISDIR):
        os.rename("new", "a")
    os.rename("a/b", "moved")
    os.rename("moved", "full/x")
    same(os.listdir("full/x"), ["c"])
    os.link("new", "same")
    os.rename("new", "same")
    same(sorted(os.listdir(".")), ["a", "full", "new", "same"])
    with refused(errno.EEXIST):
        rename("new", "same", NOREPLACE)
    rename("new", "free", NOREPLACE)
    write("other", b"other")
    rename("free", "other", EXCHANGE)
    same((read("free"), read("other")), (b"other", b"old"))
    rename("a", "other", EXCHANGE)
    same((read("a"), os.listdir("other")), (b"old", []))
    directory = os.open("full", os.O_RDONLY | os.O_DIRECTORY)
    os.rename("full", "elsewhere")
    same(os.listdir(directory), ["x"])
    same(os.readlink(f"/proc/self/fd/{directory}"), os.path.abspath("elsewhere"))
    os.stat("x/c", dir_fd=directory)


@check
def removed_while_open():
    fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o644)
    other = os.open("file", os.O_RDONLY)
    os.write(fd, b"content")
    os.unlink("file")
    same(os.listdir("."), [])
    same(os.fstat(fd).st_nlink, 0)
    os.write(fd, b", more")
    same(os.pread(other, 20, 0), b"content, more")
    os.ftruncate(fd, 4)
    same(os.read(other, 20), b"cont")
    os.fchmod(fd, 0o600)
    same(stat.S_IMODE(os.fstat(other).st_mode), 0o600)
    write("file", b"another")
    same(os.pread(fd, 20, 0), b"cont")
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    same(os.read(again, 20), b"cont")
    os.mkdir("directory")
    os.chdir("directory")
    os.rmdir("../directory")
    with refused(errno.ENOENT):
        os.getcwd()
    with refused(errno.ENOENT):
        os.open("file", os.O_CREAT | os.O_WRONLY)
    same(os.listdir("."), [])
    os.fchdir(os.open("/", os.O_RDONLY))


@check
def removals():
    os.makedirs("full/x")
    with refused(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir("full")
    with refused(errno.EISDIR):
        os.unlink("full")
    write("file", b"")
    with refused(errno.ENOTDIR):
        os.rmdir("file")
    with refused(errno.ENOENT):
        os.unlink("absent")
    with refused(errno.EINVAL):
        os.rmdir("full/x/.")
    same(os.stat("full").st_nlink, 3)
    os.rmdir("full/x")
    same(os.stat("full").st_nlink, 2)
    os.rmdir("full")
    with refused(errno.ENOENT):
        os.stat("full")
    # What was absent is there when it has been made, again and again.
    for _ in range(20):
        assert not os.path.exists("full")
        os.mkdir("full")
        assert os.path.exists("full")
        os.rmdir("full")


@check
def long_and_odd_names():
    name = "n" * 255
    write(name, b"x")
    with refused(errno.ENAMETOOLONG):
        write("n" * 256, b"x")
    odd = [b"\xff\xfe", b"new\nline", b"-", b" ", b"\xc3\xbc", b"a" * 254 + b"\n"]
    for each in odd:
        write(each, each)
    same(sorted(os.listdir(b".")), sorted(odd + [name.encode()]))
    for each in odd:
        same(read(each), each)
    here = os.getcwd()
    step = "d" * 200
    for _ in range(25):
        os.mkdir(step)
        os.chdir(step)
    write("deep", b"deep")
    same(read("deep"), b"deep")
    with refused(errno.ENAMETOOLONG):
        os.stat(here + ("/" + step) * 25)
    os.chdir(here)


@check
def listings():
    names = {f"name{number:04}" for number in range(2000)}
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
    os.mkdir("directory")
    os.symlink("x", "link")
    os.mkfifo("fifo")
    found = {entry.name: entry for entry in os.scandir(".")}
    same(set(found), names | {"directory", "link", "fifo"})
    for name in ("directory", "link", "name0007"):
        same(found[name].inode(), os.lstat(name).st_ino)
    assert found["directory"].is_dir(follow_symlinks=False) and found["link"].is_symlink()
    # What stays is listed once, whatever else goes while one reads.
    seen = []
    with os.scandir(".") as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 3 == 0 and entry.name in names:
                os.unlink(entry.name)
                names.discard(entry.name)
    assert names <= set(seen), names - set(seen)
    same(len(seen), len(set(seen)))
    same(set(os.listdir(".")), names | {"directory", "link", "fifo"})
    fd = os.open(".", os.O_RDONLY)
    before = set(os.listdir(fd))
    write("late", b"")
    same(set(os.listdir(fd)) - before, {"late"})


@check
def times():
    write("file", b"x")
    os.utime("file", ns=(1_000_000_000_123_456_789, 1_500_000_000_987_654_321))
    about = os.stat("file")
    same((about.st_atime_ns, about.st_mtime_ns), (1_000_000_000_123_456_789, 1_500_000_000_987_654_321))
    os.utime("file", ns=(2_000_000_000, -5_000_000_001))
    same(os.stat("file").st_mtime_ns, -5_000_000_001)
    fd = os.open("file", os.O_RDWR)
    os.utime(fd, ns=(7, 8))
    same(os.stat("file").st_mtime_ns, 8)

    def later(change, of):
        before = os.stat(of)
        time.sleep(0.012)
        change()
        after = os.stat(of)
        return after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns

    same(later(lambda: os.write(fd, b"x"), "file"), (True, True))
    same(later(lambda: os.ftruncate(fd, 0), "file"), (True, True))
    same(later(lambda: os.chmod("file", 0o600), "file"), (False, True))
    same(later(lambda: os.link("file", "name"), "file"), (False, True))
    same(later(lambda: os.unlink("name"), "file"), (False, True))
    same(later(lambda: os.rename("file", "name"), fd), (False, True))
    same(later(lambda: write("made", b""), "."), (True, True))
    same(later(lambda: os.unlink("made"), "."), (True, True))
    os.utime("name")
    assert abs(os.stat("name").st_mtime - time.time()) < 5


@check
def modes_and_owners():
    write("file", b"x")
    for mode in (0o000, 0o777, 0o1755, 0o640):
        os.chmod("file", mode)
        same(stat.S_IMODE(os.stat("file").st_mode), mode)
    os.chown("file", -1, os.getgid())
    if is_root:
        os.chown("file", 54321, 54322)
        same((os.stat("file").st_uid, os.stat("file").st_gid), (54321, 54322))
        os.mkdir("directory")
        os.chown("directory", 0, 54322)
        os.chmod("directory", 0o2775)
        write("directory/file", b"")
        os.mkdir("directory/below")
        same(os.stat("directory/file").st_gid, 54322)
        same(stat.S_IMODE(os.stat("directory/below").st_mode), 0o2755)
        return
    with refused(errno.EPERM):
        os.chown("file", 0, -1)
    with refused(errno.EPERM):
        os.chown("file", -1, 0)
    with refused(errno.EPERM):
        os.chmod("/etc/passwd", 0o777)
    with refused(errno.EACCES):
        os.open("/etc/shadow", os.O_RDONLY)
    with refused(errno.EACCES):
        os.listdir("/root")
    with refused(errno.EACCES):
        write("/etc/made-by-a-test", b"")
    os.mkdir("closed")
    write("closed/file", b"x")
    os.chmod("closed", 0o600)
    with refused(errno.EACCES):
        os.stat("closed/file")
    same(os.listdir("closed"), ["file"])
    os.chmod("closed", 0o300)
    same(read("closed/file"), b"x")
    with refused(errno.EACCES):
        os.listdir("closed")
    os.chmod("closed", 0o500)
    with refused(errno.EACCES):
        os.unlink("closed/file")
    os.chmod("closed", 0o700)
    os.chmod("file", 0o200)
    same((os.access("file", os.R_OK), os.access("file", os.W_OK)), (False, True))


@check
def extended_attributes():
    write("file", b"x")
    os.setxattr("file", "user.one", b"1")
    os.setxattr("file", "user.binary", bytes(range(256)))
    os.setxattr("file", "user.empty", b"")
    same(sorted(n for n in os.listxattr("file") if n.startswith("user.")), ["user.binary", "user.empty", "user.one"])
    same(os.getxattr("file", "user.binary"), bytes(range(256)))
    same(os.getxattr("file", "user.empty"), b"")
    with refused(errno.EEXIST):
        os.setxattr("file", "user.one", b"2", os.XATTR_CREATE)
    with refused(errno.ENODATA):
        os.setxattr("file", "user.two", b"2", os.XATTR_REPLACE)
    os.setxattr("file", "user.one", b"2", os.XATTR_REPLACE)
    same(os.getxattr("file", "user.one"), b"2")
    os.removexattr("file", "user.one")
    with refused(errno.ENODATA):
        os.getxattr("file", "user.one")
    with refused(errno.ENODATA):
        os.removexattr("file", "user.one")
    large = b"v" * 3000
    os.setxattr("file", "user.large", large)
    same(os.getxattr("file", "user.large"), large)
    buffer = ctypes.create_string_buffer(10)
    with refused(errno.ERANGE):
        call("getxattr", b"file", b"user.large", buffer, 10)
    same(call("getxattr", b"file", b"user.large", None, 0), 3000)
    with refused(errno.EOPNOTSUPP):
        os.setxattr("file", "nonsense.name", b"x")
    os.symlink("file", "link")
    with refused(errno.EPERM):
        os.setxattr("link", "user.one", b"x", follow_symlinks=False)
    os.mkdir("directory")
    os.setxattr("directory", "user.d", b"d")
    same(os.getxattr("directory", "user.d"), b"d")
    os.rename("file", "moved")
    same(os.getxattr("moved", "user.large"), large)
    if is_root:
        os.setxattr("moved", "trusted.mine", b"t")
        same(os.getxattr("moved", "trusted.mine"), b"t")


@check
def access_control_lists():
    if not shutil.which("setfacl"):
        raise Skipped("no setfacl here")

    def setfacl(*args):
        subprocess.run(["setfacl", *args], check=True)

    def getfacl(path):
        lines = subprocess.check_output(["getfacl", "-nc", path], text=True).split("\n")
        return [line.split("\t")[0] for line in lines if line]

    write("file", b"x", mode=0o640)
    setfacl("-m", "u:54399:rw,g:54398:r", "file")
    expected = ["user::rw-", "user:54399:rw-", "group::r--", "group:54398:r--", "mask::rw-", "other::---"]
    same(getfacl("file"), expected)
    # The group's bits are the mask now.
    same(stat.S_IMODE(os.stat("file").st_mode), 0o660)
    os.chmod("file", 0o640)
    same(getfacl("file")[4], "mask::r--")
    setfacl("-x", "u:54399", "file")
    same(getfacl("file"), ["user::rw-", "group::r--", "group:54398:r--", "mask::r--", "other::---"])
    setfacl("-b", "file")
    same(getfacl("file"), ["user::rw-", "group::r--", "other::---"])
    os.mkdir("directory")
    setfacl("-d", "-m", "u::rwx,g::rwx,o::-,u:54399:rx", "directory")
    os.umask(0o077)
    write("directory/file", b"", mode=0o666)
    # A default ACL takes the umask's place.
    same(getfacl("directory/file"), ["user::rw-", "user:54399:r-x", "group::rwx", "mask::rw-", "other::---"])
    same(stat.S_IMODE(os.stat("directory/file").st_mode), 0o660)
    os.mkdir("directory/below")
    same([line for line in getfacl("directory/below") if line.startswith("default:user:5")], ["default:user:54399:r-x"])
    assert "system.posix_acl_access" in os.listxattr("directory/file")


@check
def file_system_numbers():
    space = os.statvfs(".")
    assert space.f_bsize >= 512 and space.f_blocks > 0 and space.f_bavail > 0, space
    same(space.f_namemax, 255)
    write("file", b"")
    same(os.fstatvfs(os.open("file", os.O_RDONLY)).f_blocks, space.f_blocks)
    os.mkdir("directory")
    devices = {os.stat(name).st_dev for name in (".", "file", "directory")}
    same(len(devices), 1)
    numbers = {os.stat(name).st_ino for name in (".", "file", "directory")}
    same(len(numbers), 3)
    same(os.stat("directory/..").st_ino, os.stat(".").st_ino)
    with refused(errno.EXDEV):
        os.link("file", f"/dev/shm/wiglaf-{os.getpid()}")


@check
def many_at_once():
    def work(number, wrong):
        try:
            for step in range(30):
                name = f"{number}-{step}"
                write(name, name.encode() * 100)
                os.rename(name, f"{name}.moved")
                same(read(f"{name}.moved"), name.encode() * 100)
                if step % 2:
                    os.unlink(f"{name}.moved")
        except BaseException as error:
            wrong.append(error)

    wrong = []
    threads = [threading.Thread(target=work, args=(number, wrong)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(wrong, [])
    same(len(os.listdir(".")), 8 * 15)
