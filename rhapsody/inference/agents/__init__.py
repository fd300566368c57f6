"""Agents: chats with a model that calls tools."""
