"""The command line, `pdae`."""
