"""What a filter or a selection reads besides the samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reads:
    """By name: ``sources`` of text, ``models`` (Hub ids or folders), ``sets`` (folders of finished calibration sets).

    They decide the outcome, so what they hold goes into the digest of the set, and what is not there is told before
    anything is made.
    """

    sources: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
