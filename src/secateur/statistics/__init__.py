"""What the inputs of a linear looked like over the calibration tokens."""

from secateur.statistics.base import InputStatistics, Statistic
from secateur.statistics.gram import Gram
from secateur.statistics.moments import Moments
from secateur.statistics.norms import ColumnNorms

__all__ = ["ColumnNorms", "Gram", "InputStatistics", "Moments", "Statistic"]
