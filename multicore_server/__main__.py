"""``python -m multicore_server``: the same as ``multicore-server``."""

from multicore_server.cli.main import main

if __name__ == "__main__":
    main(prog_name="multicore-server")
