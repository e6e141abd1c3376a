"""Hostile programs that read stdin and write stdout. What they print is the proof: escapes are named, nothing else."""

from hostile import Hostile

LIBC = "import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
ATTEMPT = """
def attempt(name, call, *args, **kwargs):
    try:
        result = call(*args, **kwargs)
    except BaseException as e:
        return
    if result != -1:
        print("escaped:", name, repr(result)[:200])
"""

EXHAUSTION = [
    Hostile("infinite loop", "time", "while True: pass"),
    Hostile("sleep", "time", "import time\ntime.sleep(1000)"),
    Hostile("one endless multiplication", "time", "x = 9**(10**8)\nprint(x % 2)"),
    Hostile(
        "signals ignored",
        "time",
        """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    ),
    Hostile(
        "processors shared by children",
        "time",
        """
import os
for _ in range(3):
    if os.fork() == 0: break
while True: pass
""",
    ),
    Hostile(
        "fork bomb",
        "time",
        """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    ),
    Hostile(
        "processes at most",
        "ok",
        """
import os, time
started = 1
try:
    while True:
        if os.fork() == 0: time.sleep(1000)
        started += 1
except OSError: print(started <= 8)
""",
        stdout="True\n",
    ),
    Hostile(
        "thread bomb",
        "error",
        """
import threading, time
while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
""",
        detail="can't start new thread",
    ),
    Hostile("memory bomb", "memory", "held = []\nwhile True: held.append(bytearray(1 << 20))", detail="MemoryError"),
    Hostile(
        "memory bomb of many processes",
        "memory",
        """
import os, time
for _ in range(5):
    if os.fork() == 0:
        held = bytearray(60 << 20)
        time.sleep(1000)
time.sleep(1000)
""",
        detail="together",
    ),
    Hostile(
        "memory bomb of processes whose first thread has ended",
        "memory",
        LIBC
        + """
import _thread, time
def hold():
    held = bytearray(60 << 20)
    time.sleep(1000)
for _ in range(3):
    if os.fork() == 0:
        _thread.start_new_thread(hold, ())
        libc.pthread_exit(None)
time.sleep(1000)
""",
        detail="together",
    ),
    Hostile(
        "memory bomb of shared pages",
        "memory",
        """
import mmap, os, time
for _ in range(5):
    if os.fork() == 0:
        held = mmap.mmap(-1, 60 << 20)
        for at in range(0, len(held), 4096): held[at] = 1
        time.sleep(1000)
time.sleep(1000)
""",
        detail="together",
    ),
    Hostile(
        "memory that no process maps",
        "ok",
        LIBC
        + ATTEMPT
        + """
attempt("memfd_create", lambda: os.memfd_create("x"))
attempt("shmget", libc.shmget, 0, 1 << 20, 0o1600)
attempt("msgget", libc.msgget, 0, 0o1600)
attempt("semget", libc.semget, 0, 1, 0o1600)
attempt("mq_open", lambda: libc.syscall(240, b"x", os.O_CREAT | os.O_RDWR, 0o600, None))
attempt("io_uring_setup", libc.syscall, 425, 8, bytes(120))
class Iov(ctypes.Structure): _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]
attempt("vmsplice", libc.vmsplice, os.pipe()[1], ctypes.byref(Iov(b"x" * 4096, 4096)), ctypes.c_size_t(1), 2)
""",
    ),
    Hostile(
        "one big file",
        "error",
        """
with open("big", "wb") as file:
    while True: file.write(bytes(1 << 20))
""",
        detail="File too large",
    ),
    Hostile(
        "disk filler",
        "error",
        """
for i in range(1000):
    with open(f"/tmp/{i}", "wb") as file: file.write(bytes(1 << 20))
""",
        detail="No space left",
    ),
    Hostile(
        "countless empty files",
        "error",
        """
i = 0
while True:
    open(str(i), "w").close()
    i += 1
""",
        detail="files",
    ),
    Hostile(
        "descriptors", "error", "import os\nheld = []\nwhile True: held.append(os.pipe())", detail="Too many open files"
    ),
    Hostile("stdout flood", "output", "while True: print('x' * 1000)", stdout=None),
    Hostile(
        "stdout flood of a child",
        "output",
        """
import os, time
if os.fork() == 0:
    while True: os.write(1, b'x' * 1000)
time.sleep(1000)
""",
        stdout=None,
    ),
    Hostile("stderr flood", "time", "import sys\nwhile True: print('x' * 1000, file=sys.stderr)"),
]

SIGHT = [
    Hostile(
        "files of the host",
        "ok",
        ATTEMPT
        + """
import os, sys
def seen(folder):
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if path in $SHOWN: continue
        elif os.path.isdir(path) and not os.path.islink(path): yield from seen(path)
        else: yield path
print(*seen("/"), os.getcwd())
for path in ("/etc/passwd", "/etc/hostname", "/root/.bashrc", "/sys", "/run", "$REPO/README.md", "/proc/1/root/etc",
             "/proc/1/cwd/x", "/dev/tty", "/dev/mem", "/dev/kmsg"):
    attempt(path, os.listdir, path)
    attempt(path, lambda path: open(path).read(), path)
""",
        stdout="/dev/fd /dev/null /dev/random /dev/shm /dev/stderr /dev/stdin /dev/stdout /dev/urandom /tmp\n",
    ),
    Hostile(
        "environment",
        "ok",
        """
import os
text = repr(dict(os.environ))
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: text += open(f"/proc/{pid}/environ").read()
    except OSError: pass
print("$CANARY" in text)
""",
        stdout="False\n",
    ),
    Hostile(
        "processes of the host",
        "ok",
        """
import os
print(sorted(filter(str.isdigit, os.listdir("/proc"))) == ["1", str(os.getpid())], os.getppid())
""",
        stdout="True 1\n",
    ),
    Hostile(
        "descriptors that are not its own",
        "ok",
        """
import os
print(os.listdir("/proc/self/fd"))
""",
        stdout="['0', '1', '2', '3']\n",
    ),
    Hostile(
        "who it is",
        "ok",
        """
import os
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(os.getresuid(), os.getresgid(), os.getgroups(), os.uname().nodename, status["NoNewPrivs"])
print({status[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}, status["Seccomp"])
""",
        stdout="(65534, 65534, 65534) (65534, 65534, 65534) [] sandbox 1\n{''} 2\n",
    ),
    Hostile(
        "network",
        "ok",
        LIBC
        + ATTEMPT
        + """
import socket, urllib.request
for family in (socket.AF_INET, socket.AF_INET6):
    for address in (("127.0.0.1", $PORT), ("::1", $PORT), ("1.1.1.1", 53), ("169.254.169.254", 80)):
        attempt(address, lambda: socket.socket(family).connect(address))
attempt("url", lambda: urllib.request.urlopen("http://127.0.0.1:$PORT", timeout=1))
attempt("abstract socket", lambda: socket.socket(socket.AF_UNIX).connect("\\0$ABSTRACT"))
attempt("packet", libc.socket, 17, 3, 0)
attempt("netlink", libc.socket, 16, 3, 0)
for family in (16, 17, 40):  # a pair is refused for its family, not by a module that the kernel loads for it
    attempt(f"pair {family}", lambda: libc.socketpair(family, 3, 0, bytes(8)) + (ctypes.get_errno() != 97))
""",
    ),
]

ESCAPES = [
    Hostile(
        "kills all it can name",
        "ok",
        """
import os, signal
for pid in (1, os.getppid(), -1, 2**22):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if pid == -1 and number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): continue
        try: os.kill(pid, number)
        except OSError: pass
print("alive")
""",
        stdout="alive\n",
    ),
    Hostile("kills its group", "error", "import os, signal\nos.killpg(0, signal.SIGKILL)", exit_code=-9),
    Hostile(
        "traces its parent",
        "ok",
        LIBC
        + ATTEMPT
        + """
class Iov(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(16)
attempt("ptrace attach", libc.ptrace, 16, 1, 0, 0)
attempt("ptrace seize", libc.ptrace, 0x4206, 1, 0, 0)
local, remote = Iov(ctypes.addressof(buffer), 16), Iov(0x400000, 16)
attempt("process_vm_readv", libc.process_vm_readv, 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
attempt("pidfd_getfd", libc.syscall, 438, os.pidfd_open(1), 0, 0)
for name in ("mem", "maps", "environ", "syscall", "stack", "auxv"):
    attempt(name, lambda: open(f"/proc/1/{name}", "rb").read(1) or -1)
for name in ("fd", "map_files", "cwd", "root", "exe", "ns"):
    attempt(name, os.listdir, f"/proc/1/{name}")
attempt("oom_score_adj", lambda: open("/proc/1/oom_score_adj", "w").write("1000"))
""",
    ),
    Hostile(
        "slows its parent down",
        "ok",
        LIBC
        + ATTEMPT
        + """
import resource
attempt("prlimit", resource.prlimit, 1, resource.RLIMIT_CPU, (0, 0))
attempt("setpriority", os.setpriority, os.PRIO_PROCESS, 1, 19)
attempt("scheduler", os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
attempt("affinity", os.sched_setaffinity, 1, {0})
""",
    ),
    Hostile(
        "raises its limits",
        "ok",
        ATTEMPT
        + """
import resource
for name in ("AS", "NPROC", "FSIZE", "NOFILE", "CPU", "CORE", "MEMLOCK"):
    which = getattr(resource, "RLIMIT_" + name)
    attempt(name, lambda: resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
""",
    ),
    Hostile(
        "becomes root",
        "ok",
        LIBC
        + ATTEMPT
        + """
for call in (os.setuid, os.setgid, os.seteuid): attempt(call.__name__, call, 0)
for program in ("/bin/su", "/usr/bin/sudo", "/bin/mount", "/usr/bin/newuidmap", "/bin/sh"):
    attempt(program, os.execv, program, [program])
attempt("setgroups", os.setgroups, [0])
""",
    ),
    Hostile(
        "makes namespaces and mounts",
        "ok",
        LIBC
        + ATTEMPT
        + """
for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x7E020000):
    attempt(f"unshare {flag:x}", libc.unshare, flag)
    attempt(f"clone {flag:x}", libc.syscall, 56, flag | 17, 0, 0, 0, 0)
attempt("clone3", libc.syscall, 435, bytes(64), 64)
attempt("mount", libc.mount, b"none", b"/tmp", b"tmpfs", 0, None)
attempt("proc", libc.mount, b"none", b"/tmp", b"proc", 0, None)
attempt("remount", libc.mount, None, b"/", None, 32 | 4096, None)
attempt("umount", libc.umount2, b"/proc/sys", 2)
attempt("pivot_root", libc.pivot_root, b"/tmp", b"/tmp")
attempt("chroot", os.chroot, "/tmp")
attempt("fsopen", libc.syscall, 430, b"tmpfs", 0)
attempt("open_tree", libc.syscall, 428, -100, b"/", 1)
attempt("setns", lambda: libc.setns(os.open("/proc/1/ns/mnt", 0), 0))
attempt("open_by_handle_at", libc.syscall, 304, -100, bytes(128), 0)
attempt("bpf", libc.syscall, 321, 0, bytes(64), 64)
attempt("keyctl", libc.syscall, 250, 0, -3, 1)
attempt("perf", libc.syscall, 298, bytes(112), 0, -1, -1, 0)
attempt("userfaultfd", libc.syscall, 323, 0)
""",
    ),
    Hostile(
        "writes where it may only read",
        "ok",
        ATTEMPT
        + """
import json, os, stat, sys
def write(path):
    with open(path, "w") as file: file.write("x")
for path in ("/x", "/lib/x", "/harness/x", "/packages/x", "/root/x", "/dev/x", "/proc/sys/kernel/core_pattern",
             "/proc/sysrq-trigger", "/proc/self/uid_map", "/proc/self/setgroups", "/etc/ld.so.preload",
             json.__file__, os.path.dirname(json.__file__) + "/x", sys.executable, "/harness/inside/values.py"):
    attempt(path, write, path)
    attempt("remove " + path, os.remove, path)
attempt("mknod", os.mknod, "/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))
attempt("chmod", os.chmod, sys.executable, 0o777)
attempt("link", os.link, sys.executable, "/tmp/python")
""",
    ),
    Hostile(
        "lives on as a daemon",
        "ok",
        LIBC
        + """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import signal, time
        for s in range(1, 65):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        libc.prctl(15, b"$TOKEN")
        time.sleep(1000)
    os._exit(0)
os.wait()
print("done")
""",
        stdout="done\n",
    ),
    Hostile(
        "daemon that holds stdout open",
        "ok",
        """
import os, time
if os.fork() == 0: time.sleep(1000)
print("done")
""",
        stdout="done\n",
    ),
]

TAMPERING = [
    Hostile("leaves before it answers", "ok", "import os\nos._exit(0)\nprint('answer')"),
    Hostile("forges the channel", "error", """
import json, os, struct
header = json.dumps({"status": "ok", "exit_code": 0, "detail": "forged", "seconds": 0.0}).encode()
frame = struct.pack(">II", len(header), 6) + header + b"forged"
for fd in range(1024):
    if fd not in (1, 2):
        try: os.write(fd, frame)
        except OSError: pass
os._exit(7)
""", exit_code=7),
    Hostile("replaces what it finds", "error", """
import builtins, gc, os, sys
for module in list(sys.modules.values()):
    for name in ("dumps", "loads", "send", "receive", "confine", "kill", "waitpid", "poll", "unpack", "encode"):
        try: setattr(module, name, lambda *a, **k: b"forged")
        except Exception: pass
frame = sys._getframe()
while frame is not None:
    for value in list(frame.f_globals.values()) + list(frame.f_locals.values()):
        for name in ("channel", "limits", "child", "isolated", "processes"):
            try: setattr(value, name, None)
            except Exception: pass
    frame = frame.f_back
for thing in gc.get_objects():
    if type(thing) is dict and "time_s" in thing: thing.clear()
sys.modules.clear()
for name in ("print", "compile", "exec", "open", "isinstance", "len", "BaseException"): delattr(builtins, name)
os._exit(5)
""", exit_code=5),
    Hostile("replaces its streams", "error", """
import sys
class Broken:
    def __getattr__(self, name): raise BaseException("no")
sys.stdout.write("kept")
sys.stdout.flush()
sys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = Broken()
""", stdout="kept", exit_code=120),
    Hostile("exception of its own", "error", """
class Strange(BaseException):
    def __str__(self): raise MemoryError
    __repr__ = __str__
raise Strange
"""),
    Hostile("deletes its working folder", "ok", """
import os, shutil
open("file", "w").close()
shutil.rmtree("/tmp", ignore_errors=True)
try: os.rmdir("/tmp"); print("gone")
except OSError: pass
try: os.chmod("/tmp", 0)
except OSError: pass
"""),
    Hostile("leaves files", "ok", """
import os
os.makedirs("a/b/c")
for path in ("a/b/c/file", "/tmp/$TOKEN"): open(path, "w").close()
os.chmod("a", 0)
"""),
    Hostile("null pointer", "error", "import ctypes\nctypes.string_at(0)", detail="SIGSEGV", exit_code=-11),
    Hostile("overflows the stack", "error", """
import sys
sys.setrecursionlimit(10**9)
class A:
    def __getattr__(self, name): return getattr(self, name + "x")
A().x
""", detail="SIGSEGV"),
    Hostile("stdin never read", "ok", "print('done')", stdin="x" * (8 << 20), stdout="done\n"),
    Hostile("stdin closed", "ok", "import os\nos.close(0)\nprint('done')", stdin="x" * (1 << 20), stdout="done\n"),
    Hostile("stdin after its end", "ok", """
import sys
text = sys.stdin.read()
print(len(text), repr(sys.stdin.read()), repr(sys.stdin.readline()))
""", stdin="é\n" * 100_000, stdout="200000 '' ''\n"),
    Hostile("no text", "ok", r"import sys; sys.stdout.buffer.write(b'\xff\0\xed\xa0')", stdout="\ufffd\0\ufffd\ufffd"),
    Hostile("prints half a character", "error", r"print('\ud800')", detail="UnicodeEncodeError"),
    Hostile("source with a null byte", "error", "print(1)\0", detail="null bytes"),
    Hostile("source with half a character", "error", "print('\ud800')", detail="UnicodeEncodeError"),
    Hostile("source too deep to compile", "error", "x = " + "(" * 10_000 + ")" * 10_000),
    Hostile("source of unknown coding", "ok", "# -*- coding: x-none -*-\nprint('é')", stdout="é\n"),
    Hostile("source with a byte order mark", "ok", "\ufeffprint('é')", stdout="é\n"),
]  # fmt: skip
