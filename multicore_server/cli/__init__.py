"""The command line ``multicore-server``; each command's module is imported only when it is used."""
