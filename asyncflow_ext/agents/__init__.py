"""Agents whose tools are tasks of an engine."""
