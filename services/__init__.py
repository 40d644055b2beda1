"""Clients of things outside the process, and of heavy optional libraries. Each imports its library on use."""
