"""The command line: one file a command, a table of commands that is loaded lazily, the console."""
