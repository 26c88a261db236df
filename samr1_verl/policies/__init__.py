"""Policies outside a training: in this process or behind an OpenAI-compatible server, with one protocol (base.py)."""
