"""One server from which all tests of a process fork theirs; it has imported what they run.

So a process lives within milliseconds, rather than the seconds that imports take. A process of
tests has one such server: whatever it is to have imported must be named before the first fork.
"""

from __future__ import annotations

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "projections.serving.server",
        "tests.faults.processes",
        "tests.ledger.proof.witnesses",
        "tests.ledger.services.workers",
        "tests.ledger.workers",
        "tests.projections.reactors",
        "tests.projections.rebuilders",
        "tests.projections.schema_change",
        "tests.projections.snapshot_takers",
        "tests.projections.worker_processes",
        "tests.support.programs",
    ]
)
