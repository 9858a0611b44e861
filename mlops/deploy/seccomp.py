"""The system calls that a serving image may make, as a profile for podman and as a filter program for bubblewrap.

The server answers on sockets that it binds itself, so it never needs `connect`: a library in the image that wants to
report home cannot. Anything else that is not listed (mounts, modules, tracing, keys, namespaces) fails with EPERM.
Leaves to others: starting images (runtime_podman.py, runtime_bubblewrap.py).
"""

from __future__ import annotations

import os
import struct
from typing import Any

ALLOWED: dict[str, int] = {  # numbers of x86-64, which images are made for
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "ioctl": 16, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23,
    "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39,
    "sendfile": 40, "socket": 41, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
    "shutdown": 48, "bind": 49, "listen": 50, "getsockname": 51, "getpeername": 52, "socketpair": 53,
    "setsockopt": 54, "getsockopt": 55, "clone": 56, "execve": 59, "exit": 60, "wait4": 61, "kill": 62, "uname": 63,
    "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "rename": 82, "unlink": 87, "readlink": 89, "chmod": 90, "fchmod": 91, "umask": 95, "gettimeofday": 96,
    "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115, "getresuid": 118, "getresgid": 120,
    "getpgid": 121, "getsid": 124, "capget": 125, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130,
    "sigaltstack": 131, "statfs": 137, "fstatfs": 138, "sched_getparam": 143, "sched_getscheduler": 145,
    "sched_get_priority_max": 146, "sched_get_priority_min": 147, "prctl": 157, "arch_prctl": 158, "gettid": 186,
    "time": 201, "futex": 202, "sched_setaffinity": 203, "sched_getaffinity": 204, "epoll_create": 213,
    "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "openat": 257,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267, "fchmodat": 268, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "epoll_pwait": 281, "timerfd_create": 283, "eventfd": 284,
    "timerfd_settime": 286, "timerfd_gettime": 287, "accept4": 288, "eventfd2": 290, "epoll_create1": 291,
    "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296, "prlimit64": 302, "getcpu": 309, "renameat2": 316,
    "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334, "clone3": 435, "close_range": 436,
    "faccessat2": 439, "epoll_pwait2": 441,
}  # fmt: skip
_ARCHITECTURE = 0xC000003E
"""AUDIT_ARCH_X86_64."""
_EPERM = 1
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
"""Codes of classic BPF: load a word of seccomp_data, jump if equal, return."""
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
"""Offsets in struct seccomp_data; see Linux, Documentation/userspace-api/seccomp_filter."""


def render_profile() -> dict[str, Any]:
    """In the OCI runtime's form, for `podman run --security-opt seccomp=FILE`."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
        "syscalls": [{"names": sorted(ALLOWED), "action": "SCMP_ACT_ALLOW"}],
    }


def render_filter() -> bytes:
    """Classic BPF, for `bwrap --seccomp FD`: another architecture is killed, a number in the list allowed."""
    numbers = sorted(ALLOWED.values())
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)),
        (_RETURN, 0, 0, _FAIL),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in program)


def open_filter() -> int:
    """A descriptor from which the filter can be read once; the caller closes it."""
    handle = os.memfd_create("seccomp")
    os.write(handle, render_filter())
    os.lseek(handle, 0, os.SEEK_SET)
    return handle
