"""Launchers: ways to start a replica's server process, one module each."""
