"""What the sandbox's first process gives up before it runs anything, through system calls that Python does not have.

    enter_user_namespace (where the backend left us root)  ->  confine: no capability, no new privilege, a system call
    filter, not traceable; children inherit all but the last and add their resource limits

The namespaces are the wall. The filter closes what they leave open:

- memory that no limit counts: memfd, System V, TCP buffers, pages given to a pipe;
- quotas of the whole host: io_uring, aio;
- a new namespace of the program's own;
- the priority and the limits of process 1.
"""

import ctypes
import errno
import os
import resource
import struct

NOBODY = 65534
OPEN_FILES = 64

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER = 1, 4, 22, 24, 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER = 0x10000000
_CLONE_NEW = 0x7E020000  # a new mount, cgroup, uts, ipc, user, pid or net namespace
_X32 = 0x40000000
_AF_UNIX = 1
_SIGKILL = 9  # the signal module would cost every start some milliseconds
_LAST_CAPABILITY = 40

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Denied system calls: their numbers on x86_64 and on aarch64.
_DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "vmsplice": (278, 75),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
}
_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _PRLIMIT = (56, 220), (435, 435), (41, 198), (53, 199), (302, 261)

_libc = ctypes.CDLL(None, use_errno=True)


def enter_user_namespace(uid: int) -> None:
    """Become `uid` of this namespace (it may be 0 of one of our own), alone in a user namespace as NOBODY."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_DUMPABLE, 1)  # a change of user cleared it, and with it the right to write the maps
    _checked("unshare", _libc.unshare(_CLONE_NEWUSER))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {uid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # refused for those that this kernel does not have


def confine() -> None:
    """Give up what is left, for this process and all that it will start."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where the host runs out of memory, the kernel ends this before any process of ours
    header = struct.pack("=Ii", 0x20080522, 0)
    none = struct.pack("=6I", *[0] * 6)
    _checked("capset", _libc.capset(header, none))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _filter_system_calls()
    _prctl(_PR_SET_DUMPABLE, 0)  # children of the same user may not trace this process or read its memory and files


def die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent has ended become our children, instead of process 1's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def limit_resources(limits: dict) -> None:
    """Set the limits in the child, before the program runs. `limits` is the package's `Limits`, with sizes in bytes."""
    cpu_s = int(limits["time_s"]) + 2  # a backstop: process 1 watches the time of all processes together
    for name, value in {
        "AS": limits["memory_bytes"],
        "CPU": cpu_s if limits["script"] else resource.RLIM_INFINITY,
        "FSIZE": limits["files_bytes"],
        "NOFILE": OPEN_FILES,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": 256,
    }.items():
        _limit(name, value)
    if limits["isolated"]:  # counted in this user namespace alone, where process 1 is one more
        _limit("NPROC", limits["processes"] + 1)


def _limit(name: str, value: int) -> None:
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > hard):
        value = hard
    resource.setrlimit(which, (value, value))


def _filter_system_calls() -> None:
    """Install a seccomp filter in classic BPF: a denied call returns an errno, all others are allowed."""
    machine = os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise OSError(f"the sandbox knows no system calls of {machine}, only of {' and '.join(_AUDIT_ARCH)}")
    column = list(_AUDIT_ARCH).index(machine)
    load_number, load_arch, load_argument = (0x20, 0, 0, 0), (0x20, 0, 0, 4), (0x20, 0, 0, 16)

    def equal(value: int, skip: int) -> tuple:  # skips that many instructions where it is another
        return (0x15, 0, skip, value)

    def fail(code: int) -> tuple:
        return (0x06, 0, 0, 0x00050000 | code)

    allow = (0x06, 0, 0, 0x7FFF0000)
    program = [load_arch, (0x15, 1, 0, _AUDIT_ARCH[machine]), fail(errno.ENOSYS), load_number]
    if machine == "x86_64":
        program += [(0x35, 0, 1, _X32), fail(errno.ENOSYS)]
    for numbers in _DENIED.values():
        program += [equal(numbers[column], 1), fail(errno.EPERM)]
    program += [equal(_CLONE3[column], 1), fail(errno.ENOSYS)]  # the C library then uses clone, whose flags show
    program += [equal(_CLONE[column], 4), load_argument, (0x45, 0, 1, _CLONE_NEW), fail(errno.EPERM), allow]
    for numbers in (_SOCKET, _SOCKETPAIR):
        program += [equal(numbers[column], 4), load_argument, (0x15, 1, 0, _AF_UNIX), fail(errno.EAFNOSUPPORT), allow]
    program += [equal(_PRLIMIT[column], 4), load_argument, (0x15, 1, 0, 0), fail(errno.EPERM), allow]
    program += [allow]

    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))


def _prctl(option: int, value: int, pointer: object = 0) -> None:
    _checked("prctl", _libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0))


def _checked(name: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
