"""What a person at a narrow terminal sees of a recorder."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
import threading
from typing import TYPE_CHECKING

from programs import CLEAN, PROGRAM, environ_for, simulator
from servers import wait_until

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = 80
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_the_live_line_is_one_line_and_the_log_stands_above_it(tmp_path: Path) -> None:
    """With two sinks, one of them away: nothing is wider than the terminal but a log line, and each begins a line."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    seen: list[bytes] = []

    def read() -> None:
        try:
            while some := os.read(ours, 65536):
                seen.append(some)
        except OSError:
            return  # nobody has the other end any more

    def said() -> str:
        return CONTROL.sub("", b"".join(seen).decode(errors="replace"))

    with simulator(tmp_path) as (url, _):
        environ = environ_for(url, tmp_path / "data", INFLUX_URL="http://127.0.0.1:9", INFLUX_BUCKET="b")
        environ |= {"TERM": "xterm", "LANG": "C.UTF-8", "TICKVAULT_SHUTDOWN_S": "1"}
        process = subprocess.Popen(
            [str(PROGRAM), "run"], env={**CLEAN, **environ}, cwd=tmp_path, stdin=its, stdout=its, stderr=its
        )
        os.close(its)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            wait_until(lambda: "influx retrying" in said(), "the sink is away")
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
        reader.join(10)
    os.close(ours)
    lines = [line for line in re.split(r"[\r\n]+", said()) if line]
    assert [line[:4].isdigit() for line in lines if "sink.retrying" in line] == [True], lines
    live = [line for line in lines if " · seq " in line]
    assert live
    assert max(map(len, live)) <= COLUMNS
