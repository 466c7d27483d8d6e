"""Say what a run of code_atlas under `--chaos` has shown: deaths, redeliveries, and whether the totals are exact.

Usage: demo_verdict.py REPORT EVENTS [ARGUMENT_OF_OWN_COUNT...]. Exit code 1 when the report differs from the
independent count. Imports nothing of the project; `redeliveries` are the messages that dead processes had in hand: each
is handed over once more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

OWN_COUNT = Path(__file__).parents[1] / "examples" / "code_atlas" / "own_count.py"


def summary(events: list[dict[str, Any]]) -> str:
    """Sentences about the deaths in these lifecycle events."""
    deaths = [event for event in events if event["event"] == "process_died"]
    recovered = [event["in_s"] for event in events if event["event"] == "process_recovered" and "in_s" in event]
    by_process = ", ".join(f"{name} {count}" for name, count in sorted(Counter(d["process"] for d in deaths).items()))
    text = f"deaths:       {len(deaths)}" + (f" ({by_process})" if deaths else ": the run ended before the first kill")
    text += f"\nredeliveries: {sum(len(death.get('in_hand') or ()) for death in deaths)}"
    if recovered:
        text += f"\nrecovery:     median {sorted(recovered)[len(recovered) // 2] * 1000:.1f} ms from death to work"
    return text


def main() -> int:
    report, events = map(Path, sys.argv[1:3])
    print(summary([json.loads(line) for line in events.read_text().splitlines()]))
    # Without a directory own_count takes the standard library of its Python, as the example does.
    check = subprocess.run(
        [sys.executable, OWN_COUNT, "--check", report, *sys.argv[3:]], capture_output=True, text=True, check=False
    )
    if check.returncode != 0:
        print(f"totals:       NOT EXACT\n{check.stdout}{check.stderr}")
        return 1
    print(f"totals:       {check.stdout.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
