"""Pure readers of finished folders that say what is in them."""
