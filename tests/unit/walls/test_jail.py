"""Giving up privileges: each promise of jail.py and world.py, in a child process that tries to break it."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Callable, Iterator

import pytest

from certdrop.walls import jail, users, world

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")
with_landlock = pytest.mark.skipif(jail.landlock_abi() == 0, reason="this kernel has no Landlock")

LIB = str(pathlib.Path(jail.__file__).parents[2])


def in_child(deed: Callable[[], object]) -> str:
    """What deed returns, or the error that ended it, in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                said = str(deed())
            except OSError as error:
                said = errno.errorcode.get(error.errno or 0, str(error))
            except BaseException as error:
                said = type(error).__name__ + ": " + str(error)
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode()
    os.waitpid(child, 0)
    return found


@pytest.fixture
def room() -> Iterator[str]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as found:
        os.chmod(found, 0o777)
        yield found


@as_root
def test_become_is_for_good() -> None:
    """No user, group or capability of root's is left, and none comes back."""
    def deed() -> str:
        users.become("nobody")
        for call in (lambda: os.setuid(0), lambda: os.seteuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
            try:
                call()
                return "came back"
            except PermissionError:
                pass
        with open("/proc/self/status", encoding="ascii") as stream:
            return "".join(line for line in stream if line.startswith(("Uid", "Groups", "CapEff", "CapPrm")))
    found = in_child(deed)
    assert "Uid:\t65534\t65534\t65534\t65534" in found and found.count("0000000000000000") == 2, found
    assert in_child(lambda: users.become("no-such-user")).startswith("KeyError")


@as_root
def test_make_own_world_sheds_all() -> None:
    """Signals, mask, limits, nice, directory, environment, umask, groups and closed streams are as a daemon's."""
    def deed() -> object:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.nice(10)
        os.umask(0)
        os.chdir("/tmp")
        os.setgroups([4])
        os.environ["PYTHONPATH"] = "/tmp"
        os.close(0)
        world.make_own_world()
        handlers = {signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)}
        return (handlers == {signal.SIG_DFL}, signal.pthread_sigmask(signal.SIG_BLOCK, []), resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 20,
                os.getpriority(os.PRIO_PROCESS, 0), oct(os.umask(0)), os.getcwd(), os.getgroups(), dict(os.environ) == users.ENVIRONMENT, os.read(0, 1))
    assert in_child(deed) == str((True, set(), True, 0, "0o77", "/", [0], True, b""))


def test_the_numbers_of_system_calls() -> None:
    """What the C library has no name for is called by the right number on every architecture that libseccomp knows here."""
    from seccomp import Arch, resolve_syscall
    calls, generic = ("ioprio_set", "keyctl", "set_mempolicy", "sched_setattr"), (30, 219, 237, 274)
    for arch, name in ((Arch.X86_64, "x86_64"), (Arch.X86, "i386"), (Arch.ARM, "arm"), (Arch.PPC64LE, "powerpc64le"), (Arch.S390X, "s390x"),
                       (Arch.AARCH64, "aarch64")):
        assert world._NUMBERS.get(name, generic) == tuple(resolve_syscall(Arch(arch), call) for call in calls)


@as_root
def test_a_limit_that_cannot_be_raised_ends_the_run() -> None:
    """A run that could only fail half-way does not begin, and says which limit it is; where root may raise limits it begins."""
    def deed() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
        try:
            world.make_own_world()
        except OSError as error:
            return "named" if "RLIMIT_NOFILE=12" in str(error) else str(error)
        return f"raised to {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    assert in_child(deed) in ("named", "raised to 4096")


def without(*capabilities: str, act: str) -> str:
    """What a program of root's says that begins without these capabilities, as in a container that drops them."""
    dropped = ",".join("-" + name for name in capabilities)
    program = f"import sys; sys.path.insert(0, {LIB!r})\nfrom certdrop.walls import users, world\n{act}\n"
    argv = ["setpriv", "--bounding-set", dropped or "+kill", sys.executable, "-c", program]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


@as_root
@pytest.mark.parametrize("capability", ["kill", "setgid", "setuid"])
def test_a_run_does_not_begin_without_what_it_needs(capability: str) -> None:
    """Root that can neither become another user nor end its process is told so before anything begins, not by whatever fails first."""
    said = without(capability, act="try:\n    world.make_own_world()\nexcept world.Unfit as error:\n    print(error)")
    assert said.startswith(f"root lacks CAP_{capability.upper()} here"), said


@as_root
def test_capabilities_that_root_has_are_not_named() -> None:
    """A run begins without what only some services need; those are told where a service fails."""
    assert without(act="print(users.lacking(users.NEEDED) + users.lacking(users.BY_SERVICES))") == "\n"
    said = without("dac_override", "chown", act="world.make_own_world(); print(users.lacking(users.NEEDED), users.lacking(users.BY_SERVICES))")
    assert said == " CAP_CHOWN, CAP_DAC_OVERRIDE\n"


def test_a_lower_limit_stays() -> None:
    """Whoever has less than what is set gets no more, and no error."""
    def deed() -> str:
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        jail.forbid(NOFILE=100, CORE=0)
        return f"{resource.getrlimit(resource.RLIMIT_NOFILE)} {resource.getrlimit(resource.RLIMIT_CORE)}"
    assert in_child(deed) == "(50, 50) (0, 0)"


def test_streams_that_were_closed_are_there() -> None:
    """Python leaves sys.stderr out where it was closed; a program that says something must not fail by that."""
    program = f"import sys; sys.path.insert(0, {LIB!r})\nfrom certdrop.walls import world\nimport os\n"
    program += "os.setgroups = lambda groups: None\nworld.make_own_world()\nprint('x', file=sys.stderr)\nsys.stdout.flush()\nsys.stdin.read()\nsys.exit(7)\n"
    done = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program], check=False)
    assert done.returncode == 7


def test_detach_passes_the_exit_status_on() -> None:
    """The child goes on in a session of its own; the parent ends as the child does, and with 70 where it was killed."""
    own = "sys.exit(9 if os.getsid(0) != os.getpid() else 3)"
    for act, code in (("sys.exit(5)", 5), ("sys.exit(0)", 0), ("os.kill(os.getpid(), 9)", os.EX_SOFTWARE), (own, 3)):
        program = f"import os, sys; sys.path.insert(0, {LIB!r})\nfrom certdrop.walls import session\nsession.detach()\n{act}\n"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


@pytest.mark.parametrize("name, follows", [
    ("certdrop-nginx", "the same command again says what is there, and does the rest"),
    ("certdrop", "cron asks the CA again; certdrop-status shows how it stands"),
    ("certdrop add", "cron asks the CA again; certdrop-status shows how it stands; to have nginx serve it, give the same command again")])
def test_what_is_said_of_an_interruption(name: str, follows: str) -> None:
    """What follows is what that program's work is about; root's part goes on to its end."""
    reader, writer = os.pipe()
    program = (f"import os, sys, time; sys.path.insert(0, {LIB!r})\nfrom certdrop.walls import session\nsys.argv = {name.split()!r}\nsession.detach()\n"
               f"os.write({writer}, b'begun')\nwhile not session.interrupted:\n    time.sleep(0.01)\nos.write({writer}, b'ended')\nos._exit(0)\n")
    with subprocess.Popen([sys.executable, "-c", program], pass_fds=[writer], stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        assert os.read(reader, 5) == b"begun"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
        assert select.select([reader], [], [], 30)[0] and os.read(reader, 5) == b"ended"
    os.close(reader)
    assert said == f"{name.split()[0]}: interrupted: nothing more is said here; root's part ends what it has begun; {follows}\n"
    assert process.returncode == os.EX_TEMPFAIL


def test_an_interruption_at_any_time_arrives() -> None:
    """One that comes while the child is being started is not lost between the two."""
    program = (f"import os, sys, time; sys.path.insert(0, {LIB!r})\nfrom certdrop.walls import session\nsys.argv[0] = 'certdrop'\nfork = os.fork\n"
               "def started():\n    child = fork()\n    if child:\n        os.kill(os.getpid(), 2)\n    return child\nos.fork = started\n"
               "session.detach()\nend = time.monotonic() + 20\nwhile not session.interrupted and time.monotonic() < end:\n    time.sleep(0.01)\n"
               "os._exit(3)\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == os.EX_TEMPFAIL and done.stderr.startswith("certdrop: interrupted: ")


def test_detach_shows_all_that_is_said_and_waits_for_nothing_else() -> None:
    """Both streams, whole, before it ends; not what a process says that is left behind, which may go on without end, and hold everything open."""
    act = ("os.write(1, b'o' * 300000)\nos.write(2, b'e' * 300000)\nif os.fork() == 0:\n    end = time.monotonic() + 8\n"
           "    while time.monotonic() < end:\n        os.write(1, b'still\\n')\nos._exit(4)")
    program = f"import os, sys, time; sys.path.insert(0, {LIB!r})\nfrom certdrop.walls import session\nsession.detach()\n{act}\n"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert time.monotonic() - begin < 5
    assert (done.returncode, done.stdout[:300000].count(b"o"), done.stderr) == (4, 300000, b"e" * 300000)


def test_detach_is_held_up_by_nobody_who_does_not_read() -> None:
    """The child says more than a pipe holds, and comes to its end; whoever does not read keeps nothing but the parent waiting, for a while."""
    reader, writer = os.pipe()
    done, mark = os.pipe()
    program = (f"import os, sys; sys.path.insert(0, {LIB!r})\nfrom certdrop import words\nwords._patience = 1.0\nfrom certdrop.walls import session\n"
               f"session.detach()\nos.write(1, b'x' * 1000000)\nos.write({mark}, b'done')\nos._exit(0)\n")
    with subprocess.Popen([sys.executable, "-c", program], stdout=writer, pass_fds=[mark]) as process:
        begin = time.monotonic()
        assert os.read(done, 4) == b"done" and time.monotonic() - begin < 1
        assert process.wait(30) == 0
    for fd in (reader, writer, done, mark):
        os.close(fd)


def test_privileges_given_up() -> None:
    """no_new_privs is set, and the process is not dumpable."""
    def deed() -> str:
        jail.give_up_privileges()
        with open("/proc/self/status", encoding="ascii") as stream:
            return next(line for line in stream if line.startswith("NoNewPrivs")).strip() + f" {os.stat('/proc/self/environ').st_uid}"
    assert in_child(deed) == "NoNewPrivs:\t1 0"


@with_landlock
def test_landlock_without_rules_leaves_nothing(room: str) -> None:
    """No file can be read, made, removed or executed, and no TCP connection made."""
    path = f"{room}/a"
    with open(path, "w", encoding="ascii"):
        pass
    for deed in (lambda: os.open(path, os.O_RDONLY), lambda: os.open(path, os.O_WRONLY), lambda: os.listdir(room), lambda: os.unlink(path),
                 lambda: os.mkdir(room + "/b"), lambda: os.rename(path, path + "c"), lambda: os.symlink("x", room + "/d"),
                 lambda: os.mkfifo(room + "/e"), lambda: os.execv("/bin/true", ["true"])):
        assert in_child(lambda: (jail.landlock(ports=()), deed())) in ("EACCES", "EXDEV"), deed
    if jail.landlock_abi() >= 4:
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert in_child(lambda: (jail.landlock(ports=()), socket.socket().connect(server.getsockname()))) == "EACCES"
            assert in_child(lambda: (jail.landlock(ports=()), socket.socket().bind(("127.0.0.1", 0)))) == "EACCES"


@with_landlock
def test_landlock_allows_what_it_is_told(room: str) -> None:
    """Reading below one directory, writing below another, one port; a path that does not exist is passed over; execution never."""
    os.mkdir(room + "/read")
    os.mkdir(room + "/write")
    for path in ("read/a", "write/a", "a"):
        with open(f"{room}/{path}", "w", encoding="ascii") as stream:
            stream.write("x")

    def inside(deed: Callable[[], object]) -> str:
        return in_child(lambda: (jail.landlock((f"{room}/read", f"{room}/none"), (f"{room}/write",)), deed())[1])
    assert inside(lambda: open(f"{room}/read/a", "rb").read()) == "b'x'"
    assert inside(lambda: open(f"{room}/write/a", "wb").write(b"yz")) == "2"
    assert inside(lambda: os.rename(f"{room}/write/a", f"{room}/write/b")) == "None"
    assert inside(lambda: open(f"{room}/read/a", "wb")) == inside(lambda: open(f"{room}/a", "rb")) == inside(lambda: os.unlink(f"{room}/read/a")) == "EACCES"
    assert inside(lambda: os.symlink("/etc/passwd", f"{room}/write/c")) == inside(lambda: os.mkdir(f"{room}/write/d")) == "EACCES"
    os.chmod(f"{room}/read/a", 0o755)
    assert inside(lambda: os.execv(f"{room}/read/a", ["a"])) == "EACCES"
    if jail.landlock_abi() >= 4:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            for server, expected in ((one, "None"), (two, "EACCES")):
                assert in_child(lambda: (jail.landlock(ports=(one.getsockname()[1],)), socket.socket().connect(server.getsockname()))[1]) == expected


@as_root
@with_landlock
def test_landlock_passes_over_what_is_out_of_reach(room: str) -> None:
    """A directory above that is closed to this user: the rest is allowed, and the way stays closed."""
    os.makedirs(room + "/closed/read")
    os.mkdir(room + "/read")
    os.chmod(room + "/closed", 0o700)

    def deed() -> object:
        users.become("nobody")
        jail.landlock((f"{room}/closed/read", f"{room}/read"))
        return os.listdir(f"{room}/read"), os.access(f"{room}/closed/read", os.R_OK)
    os.chmod(room, 0o755)
    assert in_child(deed) == "([], False)"


@with_landlock
def test_landlock_reaches_other_processes(room: str) -> None:
    """From ABI 6 no signal and no abstract socket leads out; tracing never does."""
    import ctypes
    outside = subprocess.Popen(["/bin/sleep", "60"])
    try:
        trace = in_child(lambda: (jail.landlock(), ctypes.CDLL(None).ptrace(16, outside.pid, 0, 0))[1])
        assert trace == "-1"
        if jail.landlock_abi() >= 6:
            assert in_child(lambda: (jail.landlock(), os.kill(outside.pid, 0))) == "EPERM"
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"\0certdrop-test-{os.getpid()}")
                server.listen()
                assert in_child(lambda: (jail.landlock(), socket.socket(socket.AF_UNIX).connect(server.getsockname()))) == "EPERM"
    finally:
        outside.kill()
        outside.wait()


def answering(number: int, deed: Callable[[], object]) -> str:
    """What deed returns where the kernel, or a filter before it, answers with this error whoever asks for Landlock."""
    def filtered() -> object:
        import seccomp
        made = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
        for call in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
            made.add_rule(seccomp.ERRNO(number), call)
        made.load()
        return deed()
    return in_child(filtered)


@pytest.mark.parametrize("number, why, mend", [
    (errno.ENOSYS, "this kernel has no Landlock", "run a kernel of Debian 12 or later"),
    (errno.EOPNOTSUPP, "Landlock is switched off in this kernel", "lsm="),
    (errno.EPERM, "a filter of system calls refuses Landlock", "landlock_create_ruleset"),
    (errno.EACCES, "a filter of system calls refuses Landlock", "landlock_create_ruleset"),
    (errno.EINVAL, "Landlock cannot be had (Invalid argument)", ""),
])
def test_why_there_is_no_landlock(number: int, why: str, mend: str) -> None:
    """A kernel without, one in which it is switched off, and a container's filter are three things, each with another next step."""
    found = answering(number, lambda: "\n".join(jail.no_landlock()))
    assert found.partition("\n")[0] == why and mend in found.partition("\n")[2], found
    assert answering(number, jail.landlock) == f"Unconfined: {why}" and answering(number, jail.landlock_abi) == "0"


@with_landlock
def test_nothing_is_said_where_landlock_is() -> None:
    assert jail.no_landlock() == ("", "")
