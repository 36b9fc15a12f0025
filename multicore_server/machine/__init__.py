"""What the kernel, the cgroup and the machine allow. Pure."""
