"""What calibration sets are like, measured before anything is pruned. One file a family of measures."""

from secateur.diagnosis.base import Finding, Options, Quantity, Subject
from secateur.diagnosis.examine import examine, families, measure
from secateur.diagnosis.families import MEASURES
from secateur.diagnosis.reference import Reference

__all__ = ["MEASURES", "Finding", "Options", "Quantity", "Reference", "Subject", "examine", "families", "measure"]
