"""The protocol between the program and its model servers."""
