"""Become another program that ends when its parent does: `launch.py PARENT_PID SIGNAL IDENTITY program argument...`

A script of its own, run by path with `python -I -S`, because what it sets belongs between fork and exec, and code run
there by a parent with threads can deadlock (subprocess documentation, preexec_fn).  It imports nothing of the service.

IDENTITY is `same`, `nobody` (a user namespace in which our uid is called 65534: for programs that refuse uid 0 although
the files are root's; user_namespaces(7)) or `UID:GID`.
"""

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
NOBODY = 65534


def become_nobody() -> None:
    """Enter a user namespace in which this process's own uid and gid are called 65534."""
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"user namespaces are not permitted: {os.strerror(error)}")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def change_identity(identity: str) -> None:
    """Take on `same`, `nobody` or `UID:GID`."""
    if identity == "nobody":
        become_nobody()
    elif identity != "same":
        uid, gid = map(int, identity.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def main(parent_pid: str, signal_number: str, identity: str, *command: str) -> None:
    """Set everything up, then exec; does not return."""
    change_identity(identity)
    # after the identity: the kernel forgets the signal when credentials change (prctl(2))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if os.getppid() != int(parent_pid):  # it ended before the line above
        raise SystemExit("the parent is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as problem:
        print(f"launch: {sys.argv[4]}: {problem}", file=sys.stderr)
        raise SystemExit(126) from None
