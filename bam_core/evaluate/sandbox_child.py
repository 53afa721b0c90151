"""The other side of `sandbox.py`: gives up what a program must not have, then runs the program from standard input.

A script of its own, with the standard library alone: it runs in a fresh interpreter, never in ours. What a rule of the
kernel refuses fails with an OSError inside the program. Order matters: resource limits and files first, system calls
last, since each step needs what the next one takes away.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from pathlib import Path

CONFINED = "confined"
"""Said before the program starts; what it is given as its mark, after its end."""

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
EPERM, ENOSYS = 1, 38
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUALS, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`."""
CLONE_THREAD = 0x10000
X32 = 0x40000000

CALLS = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "clone": 56,
            "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "setpgid": 109, "setsid": 112,
            "mount": 165, "tkill": 200, "tgkill": 234, "unshare": 272, "prlimit64": 302, "setns": 308,
            "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322, "pidfd_send_signal": 424,
            "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435,
            "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250,
            "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "utime": 132, "setxattr": 188,
            "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
            "utimes": 235, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "utimensat": 280, "fchmodat2": 452,
            "setxattrat": 463, "removexattrat": 466,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "mount": 40, "unshare": 97, "ptrace": 117, "kill": 129, "tkill": 130, "tgkill": 131, "setpgid": 154,
            "setsid": 157, "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203,
            "clone": 220, "execve": 221, "prlimit64": 261, "setns": 268, "process_vm_readv": 270,
            "process_vm_writev": 271, "bpf": 280, "execveat": 281, "pidfd_send_signal": 424, "io_uring_setup": 425,
            "pidfd_open": 434, "clone3": 435,
            "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "add_key": 217, "request_key": 218,
            "keyctl": 219, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
            "fremovexattr": 16, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88,
            "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466,
        },
    ),
}  # fmt: skip
"""Machine -> its name in the kernel's audit, and the numbers of the calls that are refused."""

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
RIGHTS_BY_VERSION = {2: 1 << 13, 3: 1 << 14}  # rename into another folder; truncate
READABLE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")


def main() -> None:
    cpu_s, memory_bytes, file_bytes, open_files = (int(word) for word in sys.argv[1:])
    mark = sys.stdin.readline()
    program = sys.stdin.read()
    answers = os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _limit(cpu_s, memory_bytes, file_bytes, open_files)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError("no_new_privs")
        _keep_to_folder(libc)
        _drop_capabilities(libc)
        _refuse_calls(libc)
    except (OSError, ValueError, KeyError):
        os._exit(1)
    os.write(answers, f"{CONFINED}\n".encode())
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    except BaseException:  # the program's own, SystemExit too: it was to come to its end
        os._exit(1)
    os.write(answers, mark.encode())
    os._exit(0)


def _limit(cpu_s: int, memory_bytes: int, file_bytes: int, open_files: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # a signal that says so, then the end
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _keep_to_folder(libc: ctypes.CDLL) -> None:
    """With Landlock, files are written in the current folder only, and read there and where Python's own are."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return  # the kernel has none: said in SECURITY.md
    writes = WRITES | sum(right for since, right in RIGHTS_BY_VERSION.items() if version >= since)
    handled = ctypes.c_uint64(writes | READ_FILE | READ_DIR)
    rules = libc.syscall(LANDLOCK_CREATE, ctypes.byref(handled), 8, 0)
    if rules < 0:
        raise OSError("landlock")
    _allow(libc, rules, Path.cwd(), writes | READ_FILE | READ_DIR)
    for path in (Path(os.__file__).parent, Path(sys.base_prefix) / "lib", *map(Path, READABLE)):
        if path.exists():
            _allow(libc, rules, path, READ_FILE | (READ_DIR if path.is_dir() else 0))
    if libc.syscall(LANDLOCK_RESTRICT, rules, 0):
        raise OSError("landlock")
    os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place), 12)
    if libc.syscall(LANDLOCK_ADD, rules, 1, ctypes.byref(rule), 0):
        raise OSError("landlock")
    os.close(place)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without them may not raise its limits again, or look into other users' files."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    if libc.capset(ctypes.byref(header), ctypes.byref(ctypes.create_string_buffer(24))):
        raise OSError("capset")


def _refuse_calls(libc: ctypes.CDLL) -> None:
    """No network, no other process or program, no signals, nothing that outlives it, no change of a file's rights."""
    audit, calls = CALLS[os.uname().machine]
    refused = [number for name, number in calls.items() if name not in ("clone", "clone3", "tgkill")]
    code = [
        *_instructions((LOAD, 0, 0, ARCH), (EQUALS, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)),
        *_instructions((AT_LEAST, 0, 1, X32), (RETURN, 0, 0, ERRNO | EPERM)),
        *(part for number in refused for part in _instructions((EQUALS, 0, 1, number), (RETURN, 0, 0, ERRNO | EPERM))),
        # libc falls back to clone, whose flags a filter can read: a thread may start, a process may not
        *_instructions((EQUALS, 0, 1, calls["clone3"]), (RETURN, 0, 0, ERRNO | ENOSYS)),
        *_where(calls["clone"], (HAS_BITS, CLONE_THREAD)),
        *_where(calls["tgkill"], (EQUALS, os.getpid())),
        *_instructions((RETURN, 0, 0, ALLOW)),
    ]
    program = ctypes.create_string_buffer(b"".join(code))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0):
        raise OSError("seccomp")


def _where(number: int, test: tuple[int, int]) -> list[bytes]:
    """Refuse the call unless its first argument passes the test."""
    operation, value = test
    return _instructions(
        (EQUALS, 0, 4, number),
        (LOAD, 0, 0, ARGUMENT),
        (operation, 1, 0, value),
        (RETURN, 0, 0, ERRNO | EPERM),
        (RETURN, 0, 0, ALLOW),
    )


def _instructions(*parts: tuple[int, int, int, int]) -> list[bytes]:
    """(operation, jump if true, jump if false, value) as `struct sock_filter`."""
    return [struct.pack("=HBBI", *part) for part in parts]


if __name__ == "__main__":
    main()
