"""``python -m secateur``"""

from secateur.cli.main import entry

entry()
