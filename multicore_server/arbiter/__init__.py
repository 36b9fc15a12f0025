"""The arbiter's process: turns signals and exits into observations, and actions into system calls."""
