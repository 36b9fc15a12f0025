"""The arbiter's process: signals and exits become observations, the fleet's actions become system calls."""
