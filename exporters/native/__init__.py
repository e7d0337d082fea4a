"""Native libraries in child processes, and the messages between parent and child."""
