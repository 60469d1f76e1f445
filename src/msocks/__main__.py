"""The program ``msocks``. `nc` starts on every ssh, so it is found before anything else is imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the verb that the command line names, and exit with its status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["nc"]:
        from msocks.cli import nc

        sys.exit(nc.main(arguments[1:]))

    from msocks.cli import program

    sys.exit(program.main(arguments))


if __name__ == "__main__":
    main()
