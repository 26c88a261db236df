"""Policies outside a training behind one protocol (base.py): in this process, or behind an OpenAI-compatible server."""
