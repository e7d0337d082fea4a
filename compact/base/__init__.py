"""What everything else builds on: errors, files, the cache, devices, processes and licences."""
