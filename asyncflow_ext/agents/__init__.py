"""Agents: AI tasks whose model calls tools, which run as tasks."""
