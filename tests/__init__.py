"""Tests of Rhapsody; see CONTRIBUTING.md for the tiers."""
