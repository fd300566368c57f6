"""Executables as child processes, and the guard that ends them if this process is killed."""
