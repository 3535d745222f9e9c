"""The facts that a run's state keeps beside its tensors, by their keys: what a run must not forget.

Each run has a `dict` of them, which grows on its way and is saved with every state.
"""

from __future__ import annotations

__all__ = ["BEFORE", "BRANCHED", "HANDED", "SECONDS", "SHARING", "TESTED", "WATCHED", "WITH_UNION"]

BEFORE = "before"  # accuracy by domain after warm-up, with every channel on
BRANCHED = "branched_from"  # of a run whose first steps are another one's: which, and where
HANDED = "handed"  # shapes and a digest of the network in hand that the run began with
SECONDS = "seconds"  # that went into the run before the state was saved
SHARING = "sharing"  # of a state that another run goes on from: what decided where they part
WATCHED = "watched"  # digests of the images that accuracy after each epoch was measured on

# Of a run that thins its domains.
WITH_UNION = "with_union"  # accuracy by domain before the first step of thinning
TESTED = "tested"  # digests of the test images that this is of
