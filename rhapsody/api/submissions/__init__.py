"""The submitted tasks of a session: from the checks of new tasks to the ends of all."""
