"""The command line: the table of commands, exit codes, and the commands."""
