"""Transports: this machine, OpenSSH, adb. One module each, one interface (`base.Transport`)."""
