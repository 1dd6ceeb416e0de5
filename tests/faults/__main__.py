"""`make faults`: break everything, and see that nothing is lost, doubled or left half done."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from time import monotonic

from tests.faults.bench import Tally
from tests.faults.checking import Broken
from tests.faults.runner import POSTGRESQL, SCENARIOS, SQLITE, grounds, play_all


def main(words: Sequence[str] | None = None) -> int:
    """Play all scenarios; return 1 where something did not hold."""
    arguments = parsed(words)
    chosen = tuple(s for s in SCENARIOS if not arguments.only or s.title in arguments.only)
    total = Tally()
    started = monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        print(f"seed {seed}", flush=True)
        try:
            with grounds() as found:
                tally = asyncio.run(play_all(found, chosen, seed, is_short=arguments.short))
        except Broken as error:
            print(f"BROKEN with seed {seed}: {error}", file=sys.stderr)
            return 1
        total.add(tally)
    print(f"\n{table(total)}\n\n{monotonic() - started:.0f} s")
    return 0


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="[random]")
    parser.add_argument("--runs", type=int, default=1, help="with this many seeds [1]")
    parser.add_argument("--short", action="store_true", help="few faults of each kind")
    titles = [each.title for each in SCENARIOS]
    parser.add_argument("--only", action="append", choices=titles, help="repeatable")
    return parser.parse_args(words)


def table(total: Tally) -> str:
    """Return what was counted as Markdown."""
    lines = [f"| fault | {SQLITE} | {POSTGRESQL} |", "| --- | ---: | ---: |"]
    for kind in dict.fromkeys(kind for _, kind in total.faults):
        counts = (total.faults.get((store, kind), "") for store in (SQLITE, POSTGRESQL))
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} |")
    sums = (sum(n for (s, _), n in total.faults.items() if s == store) for store in STORES)
    lines.append(f"| **all faults** | {' | '.join(f'**{n:,}**' for n in sums)} |")
    acknowledged = (f"{total.acknowledged[store]:,}" for store in STORES)
    lines.append(f"| acknowledged events | {' | '.join(acknowledged)} |")
    lines += [f"| {what} | 0 | 0 |" for what in ("of these lost", "stored or applied twice")]
    lines += [f"\nNot done on {s}: {kind} ({why})." for (s, kind), why in total.skipped.items()]
    return "\n".join(lines)


STORES = (SQLITE, POSTGRESQL)


if __name__ == "__main__":
    sys.exit(main())
