"""The arbiter's process: gunicorn's callbacks become observations, the fleet's actions become system calls."""
