"""gRPC load by h2load, which costs little CPU of its own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Latencies in ms, ascending."""

    latencies_ms: list[float]

    def percentile_ms(self, share: float) -> float:
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(share * len(self)))]

    def __len__(self) -> int:
        return len(self.latencies_ms)


def calls(
    h2load: Path,
    url: str,
    messages: Sequence[bytes],
    *,
    count: int,
    in_flight: int,
    key: str,
    folder: Path,
    connections: int = 4,
) -> Result:
    """Sends `count` calls of all `messages`; SystemExit unless each was answered with them."""
    body, log = folder / "request", folder / "latencies"
    body.write_bytes(
        b"".join(b"\x00" + len(message).to_bytes(4, "big") + message for message in messages)
    )
    log.unlink(missing_ok=True)
    connections = min(connections, in_flight)
    done = subprocess.run(
        [
            *(str(h2load), "-n", str(count), "-c", str(connections)),
            *("-m", str(in_flight // connections), "-w", "24", "-W", "24"),
            *("-d", str(body), f"--log-file={log}", "-H", "te: trailers"),
            *("-H", "content-type: application/grpc", "-H", f"authorization: Bearer {key}"),
            url,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    # A refused call is HTTP 200 without a message, so the answers' bytes are what tells.
    data = re.search(r"\((\d+)\) data$", done.stdout, re.MULTILINE)
    if data is None or int(data[1]) != count * body.stat().st_size:
        raise SystemExit(f"not every call to {url} was answered with its message:\n{done.stdout}")
    return Result(
        latencies_ms=sorted(int(line.split("\t")[2]) / 1000 for line in log.open(encoding="ascii"))
    )
