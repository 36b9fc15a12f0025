"""What passes between the processes: the scoreboard, the shared report, the channel. Pure."""
