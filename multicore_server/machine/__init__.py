"""Limits of the kernel, the cgroup and the machine. Imports only the standard library and psutil."""
