"""The error tree. Every message says what is wrong, where, what was found, and what to do.

SecateurError                   exit code
├── UsageError                      2   what was asked for cannot be done as asked
│   ├── UnknownNameError            2   no such method, source, filter, ... ("did you mean")
│   ├── PatternError                2   a pattern or sparsity that makes no sense, or contradicts the other
│   └── RecipeError                 2   a recipe file or --set value: file, line, key
├── ModelError                      2   a model that is missing, damaged or of an unsupported kind
├── CalibrationError                2   calibration text that is missing, unreachable or too little
├── NumericsError                   2   activations or statistics that are not finite, a Gram that cannot be solved
├── StoreError                      2   an output folder that is taken, locked, or cannot be written
└── VerificationError               1   the run finished but its output is not what it should be
"""

from __future__ import annotations


class SecateurError(Exception):
    """Base of every error Secateur raises on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 2


class UsageError(SecateurError):
    """What was asked for cannot be done as asked."""


class UnknownNameError(UsageError):
    """No method, source, filter, allocation or recipe has this name."""


class PatternError(UsageError):
    """A pattern or a sparsity that makes no sense, or contradicts the other."""


class RecipeError(UsageError):
    """A recipe file or a ``--set`` value that cannot be used."""


class ModelError(SecateurError):
    """A model that is missing, damaged, or of a kind that is not supported."""


class CalibrationError(SecateurError):
    """Calibration text that is missing, unreachable or too little."""


class NumericsError(SecateurError):
    """Activations or statistics that are not finite, or a Gram matrix that cannot be solved."""


class StoreError(SecateurError):
    """An output folder that is taken by another spec, in use, or cannot be written."""


class VerificationError(SecateurError):
    """The run finished, but its output is not what it should be."""

    exit_code = 1
