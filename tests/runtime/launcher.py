"""Starts a program with sockets as systemd does (sd_listen_fds(3)): `launcher.py NAMES FD[,FD…] COMMAND …`.

The descriptors become 3, 4, …; NAMES stand in LISTEN_FDNAMES; the process of the command is this one.
"""

from __future__ import annotations

import fcntl
import os
import sys

FIRST = 3
OUT_OF_THE_WAY = 100


def main() -> None:
    names, numbers, *command = sys.argv[1:]
    aside = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) for number in numbers.split(",")]
    for place, number in enumerate(aside):
        os.dup2(number, FIRST + place, inheritable=True)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(aside)), "LISTEN_FDNAMES": names}
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
