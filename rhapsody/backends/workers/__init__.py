"""Worker processes: the program they run, their messages and connections, and the scheduler."""
