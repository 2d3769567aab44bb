"""Everything that programs do with files, on one machine: checks.py DIRECTORY [NAME...]

Prints a line for each check, and ends with 1 if one fails. Each check has a fresh directory,
which it is in.
"""
import contextlib, ctypes, errno, os, shutil, sys, traceback

libc = ctypes.CDLL(None, use_errno=True)
checks = {}
is_root = os.geteuid() == 0


class Skipped(Exception):
    pass


def check(function):
    checks[function.__name__] = function
    return function


@contextlib.contextmanager
def refused(*errnos):
    """What is inside fails with one of these."""
    try:
        yield
    except OSError as error:
        names = [errno.errorcode[number] for number in errnos]
        assert error.errno in errnos, f"{error}, and not {names}"
    else:
        raise AssertionError(f"not refused with {[errno.errorcode[number] for number in errnos]}")


def call(name, *args):
    """A function of libc's that Python lacks."""
    function = getattr(libc, name)
    result = function(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return result


def link_open_file(fd, path):
    """Gives an open file a name. Python's os.link does not pass AT_SYMLINK_FOLLOW."""
    here, follow = -100, 0x400
    call("linkat", here, f"/proc/self/fd/{fd}".encode(), here, os.fsencode(path), follow)


def same(value, expected):
    assert value == expected, f"{value!r}, and not {expected!r}"


def write(path, content, flags=os.O_TRUNC, mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, mode)
    try:
        same(os.write(fd, content), len(content))
    finally:
        os.close(fd)


def read(path):
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def forked(function):
    """Runs it in a child, whose status is given: what exited with, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = function() or 0
        except OSError as error:
            code = error.errno
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main():
    import between, contents, names

    top = os.path.abspath(sys.argv[1])
    wanted = sys.argv[2:] or list(checks)
    failed = 0
    for name in wanted:
        directory = os.path.join(top, name)
        os.mkdir(directory)
        os.chdir(directory)
        os.umask(0o022)
        try:
            checks[name]()
            print("ok", name, flush=True)
        except Skipped as reason:
            print("left out", name, reason, flush=True)
        except BaseException:
            failed += 1
            print("FAILED", name, traceback.format_exc(), sep="\n", flush=True)
        os.chdir(top)
        shutil.rmtree(directory, ignore_errors=True)
        if os.path.exists(directory):
            failed += 1
            print("FAILED", name, "its directory can't be removed:", os.listdir(directory), flush=True)
    same(os.listdir(top), [])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.modules["checks"] = sys.modules["__main__"]
    sys.exit(main())
